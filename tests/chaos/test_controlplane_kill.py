"""SIGKILL of the control plane during writes, imports and snapshots: nothing acknowledged is lost, sidecars catch up."""

from __future__ import annotations

import random
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from sidestep.v1 import admin_pb2, resources_pb2

from tests.chaos import world
from tests.chaos.ledger import Inspector, Ledger, inspecting
from tests.chaos.pod import Plane, Pod, pass_time
from tests.chaos.traffic import Operators, asking, misused_grants, writing
from tests.fakes.stock import TENANT
from tests.processes import until

WITHIN_S = 30.0
_IMPORT_FROM = 1_000_000


class Importer:
    """Imports devices over and over, in a thread; numbers beyond those the operators write."""

    def __init__(self, plane: Plane, count: int) -> None:
        self.completed = 0
        self.cut_off = 0
        # Version of the last import that was acknowledged.
        self.version = 0
        self._plane = plane
        self._count = count
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="importer")

    def __enter__(self) -> Importer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        version = 0
        while not self._stop.wait(0.05):
            version += 1
            devices = [world.device(_IMPORT_FROM + number, version) for number in range(self._count)]
            try:
                self._plane.load(TENANT, devices)
            except grpc.RpcError:
                self.cut_off += 1
            else:
                self.completed += 1
                self.version = version


@pytest.mark.timeout(150)
def test_nothing_acknowledged_is_lost_by_sigkill_of_the_control_plane(tmp_path: Path) -> None:
    _survive(tmp_path, kills=6, devices=4_000)


@pytest.mark.e2e
def test_nothing_acknowledged_is_lost_by_sigkill_of_the_control_plane_for_long(tmp_path: Path) -> None:
    _survive(tmp_path, kills=30, devices=40_000)


def _survive(tmp_path: Path, *, kills: int, devices: int, seed: int | None = None) -> None:
    seed = random.randrange(2**32) if seed is None else seed
    sys.stdout.write(f"seed {seed}\n")
    rng = random.Random(seed)
    with Plane(tmp_path / "cp") as plane, ExitStack() as newcomers:
        for resource in world.resources():
            plane.put(resource)
        plane.load(TENANT, [world.device(number) for number in range(devices)])
        ledger = Ledger(plane.database)
        ledger.absorb()
        joined: list[Inspector] = []
        starts_s: list[float] = []
        with (
            Pod(tmp_path / "pod" / "data", plane.address) as pod,
            inspecting(pod.data_dir, ledger, TENANT) as inspector,
            asking(pod.address) as service,
        ):
            inspector.wait_for_convergence(WITHIN_S)
            service.wait_for_answers(10, WITHIN_S)
            calm = time.monotonic()
            with writing(plane, seed, devices) as operators, Importer(plane, 2_500) as importer:
                for number in range(kills):
                    if number % 4 == 2:  # somebody is always in the middle of a snapshot
                        joined.append(_join(newcomers, tmp_path / f"pod-{number}" / "data", plane, ledger))
                    _wait_for_writes(operators)
                    pass_time(rng, 0.5)
                    plane.kill()
                    inspector.inspect()
                    begun = time.monotonic()
                    plane.start()
                    starts_s.append(time.monotonic() - begun)
                _wait_for_writes(operators)
            for follower in (inspector, *joined):
                follower.wait_for_convergence(WITHIN_S)
            service.wait_for_answers(10, WITHIN_S)
            service.stop()
            longest_s = service.longest_gap_s(calm, service.answers[-1].at)
        sys.stdout.write(
            f"{kills} kills; {operators.acknowledged} writes acknowledged; imports: {importer.completed} completed, "
            f"{importer.cut_off} cut off; {inspector.inspections} inspections of {len(inspector.revisions)} revisions; "
            f"{len(joined)} sidecars joined; {len(service.answers)} answers, longest time without one {longest_s:.2f} s, "
            f"without control plane {min(starts_s):.2f} s and more\n"
        )
        ledger.reread()
        _check_acknowledged(plane, operators, importer)
        assert service.problems == []
        assert misused_grants(service.answers, operators.lives) == []
        # Callers do not notice: answers go on while there is no control plane, which is for at least this long each time.
        assert longest_s < max(1.0, min(starts_s))
        assert [said for at, said in service.refusals if at > calm] == []
        assert importer.cut_off > 0


def _join(newcomers: ExitStack, data_dir: Path, plane: Plane, ledger: Ledger) -> Inspector:
    """One more sidecar, which has everything to learn."""
    pod = newcomers.enter_context(Pod(data_dir, plane.address))
    inspector = Inspector(pod.data_dir, ledger)
    newcomers.callback(inspector.close)
    return inspector


def _wait_for_writes(operators: Operators) -> None:
    """Waits until the control plane acknowledges again, so that every kill hits one that works."""
    seen = dict(operators.acknowledged)
    until(lambda: all(operators.acknowledged[lane] > seen[lane] + 1 for lane in seen), "writes", WITHIN_S)


def _check_acknowledged(plane: Plane, operators: Operators, importer: Importer) -> None:
    """What was acknowledged last of each record is what is there, and the revoked stayed revoked."""
    stored: dict[str, resources_pb2.Device] = {}
    request = admin_pb2.ListResourcesRequest(
        parent=f"tenants/{TENANT}", collection=resources_pb2.COLLECTION_DEVICES, page_size=1000
    )
    while True:
        page = plane.admin.ListResources(request, timeout=10)
        stored |= {resource.device.name: resource.device for resource in page.resources}
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert operators.held
    for number, version in operators.held.items():
        found = stored.get(world.device(number).name)
        if version is None:
            assert found is None, f"device {number} is back though its deletion was acknowledged"
        else:
            assert found is not None
            assert found.validate_time == world.device(number, version).validate_time
    if importer.version:
        held = [stored[world.device(_IMPORT_FROM + number).name] for number in (0, 999, 1000, 2499)]
        oldest = world.device(_IMPORT_FROM, importer.version).validate_time.seconds
        assert all(
            device.validate_time.seconds - number >= oldest
            for device, number in zip(held, (0, 999, 1000, 2499), strict=True)
        )
    for name, life in operators.lives.items():
        if life.before is not None:
            found_grant = plane.admin.GetResource(admin_pb2.GetResourceRequest(name=name), timeout=10).resource.grant
            assert found_grant.state == resources_pb2.GRANT_STATE_REVOKED
