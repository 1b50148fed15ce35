"""Damaged, missing and foreign files in the data directory: never a wrong ALLOW, and back at the right digest."""

from __future__ import annotations

import os
import random
import re
import resource as limits
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sidestep.v1 import decision_pb2

from tests.chaos import world
from tests.chaos.ledger import Inspector, Ledger
from tests.chaos.pod import Plane, Pod
from tests.chaos.traffic import Service, asking
from tests.fakes.stock import TENANT
from tests.processes import until

WITHIN_S = 30.0
DEVICES = 3_000


class Origin(NamedTuple):
    """A control plane, and the data directory of a sidecar that followed it and was stopped."""

    plane: Plane
    ledger: Ledger
    data_dir: Path


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    folder = tmp_path_factory.mktemp("files")
    with Plane(folder / "cp") as plane:
        for record in world.resources():
            plane.put(record)
        # Alice's only grant is revoked, so here nobody is ever exempted.
        plane.put(world.grant(1, active=True))
        plane.put(world.grant(1, active=False))
        plane.load(TENANT, [world.device(number) for number in range(DEVICES)])
        ledger = Ledger(plane.database)
        ledger.absorb()
        with Pod(folder / "pod" / "data", plane.address) as pod:
            converge(pod, ledger)
            assert pod.stop() == 0
        yield Origin(plane, ledger, pod.data_dir)


@pytest.fixture
def pod(origin: Origin, tmp_path: Path) -> Pod:
    """A sidecar with a copy of that directory, not started yet."""
    data_dir = tmp_path / "pod" / "data"
    shutil.copytree(origin.data_dir, data_dir)
    return Pod(data_dir, origin.plane.address, SIDESTEP_SCRUB_INTERVAL="1s")


def converge(pod: Pod, ledger: Ledger) -> None:
    """Waits until the sidecar holds what the control plane holds, and recomputes all of it.

    Opens the store only now: a damaged file must not be mapped into the process of the tests.
    """
    inspector = Inspector(pod.data_dir, ledger)
    try:
        inspector.wait_for_convergence(WITHIN_S)
    finally:
        inspector.close()


def check(service: Service) -> None:
    """Answers flow, and not one of them allowed what must not be."""
    service.wait_for_answers(12, WITHIN_S)
    service.stop()
    assert service.problems == []
    bases = {answer.response.basis for answer in service.answers}
    assert decision_pb2.BASIS_EXEMPTION_GRANT not in bases
    assert {decision_pb2.BASIS_BLOCKED, decision_pb2.BASIS_CHALLENGE, decision_pb2.BASIS_ASSURANCE_SATISFIED} <= bases


def live(pod: Pod) -> Path:
    return pod.data_dir / (pod.data_dir / "CURRENT").read_text()


def mark(pod: Pod) -> None:
    """Makes the live generation recognisable, as numbers are given again when none is left."""
    (live(pod) / "marked").touch()


def replaced(pod: Pod) -> bool:
    """Whether the live generation is another one than was marked."""
    try:
        return not (live(pod) / "marked").exists()
    except (OSError, ValueError):
        return True


def cut_the_data(pod: Pod) -> None:
    data = live(pod) / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)


def cut_the_data_to_nothing(pod: Pod) -> None:
    os.truncate(live(pod) / "data.mdb", 0)


def remove_the_data(pod: Pod) -> None:
    (live(pod) / "data.mdb").unlink()


def lose_both_meta_pages(pod: Pod) -> None:
    with (live(pod) / "data.mdb").open("r+b") as file:
        file.write(os.urandom(8192))


def flip_record_bytes(pod: Pod) -> None:
    """Inside values only, where LMDB itself notices nothing."""
    data = live(pod) / "data.mdb"
    content = bytearray(data.read_bytes())
    found = [match.start() for match in re.finditer(rb"tenants/acme/devices/d0", content)]
    assert found
    for at in found:
        content[at + 3] ^= 0x10
    data.write_bytes(content)


def remove_current(pod: Pod) -> None:
    (pod.data_dir / "CURRENT").unlink()


def point_current_nowhere(pod: Pod) -> None:
    (pod.data_dir / "CURRENT").write_text("gen-4711")


def point_current_outside(pod: Pod) -> None:
    (pod.data_dir / "CURRENT").write_text("gen-1/../../elsewhere")


def fill_current_with_garbage(pod: Pod) -> None:
    (pod.data_dir / "CURRENT").write_bytes(b"\xff\x00\xfegen-\n" * 100)


@pytest.mark.parametrize(
    "damage",
    [
        cut_the_data,
        cut_the_data_to_nothing,
        remove_the_data,
        lose_both_meta_pages,
        flip_record_bytes,
        remove_current,
        point_current_nowhere,
        point_current_outside,
        fill_current_with_garbage,
    ],
)
def test_a_damaged_store_is_replaced_by_a_sound_one(origin: Origin, pod: Pod, damage: Callable[[Pod], None]) -> None:
    mark(pod)
    damage(pod)
    with pod, asking(pod.address) as service:
        until(lambda: replaced(pod), f"a new generation; {pod.log()}", WITHIN_S)
        converge(pod, origin.ledger)
        check(service)


def age_the_boot(pod: Pod) -> None:
    (live(pod) / "boot").write_text("another-boot")


def suspect_the_generation(pod: Pod) -> None:
    (live(pod) / "suspect").write_text("worker-0 died of signal 7")


def leave_a_foreign_page(pod: Pod) -> None:
    (pod.data_dir / "page").write_bytes(os.urandom(1000))


def leave_foreign_files(pod: Pod) -> None:
    (pod.data_dir / "README").write_text("not ours")
    (pod.data_dir / "lost+found").mkdir()
    (pod.data_dir / "CURRENT.tmp").write_text("gen-9")
    (pod.data_dir / "gen-9").mkdir()
    (pod.data_dir / "gen-ten").mkdir()
    (pod.data_dir / "journal" / "core").write_bytes(b"\0" * 100)
    (live(pod) / "notes").write_text("not ours")


@pytest.mark.parametrize("change", [age_the_boot, suspect_the_generation, leave_a_foreign_page, leave_foreign_files])
def test_a_sound_store_is_kept_whatever_lies_around_it(origin: Origin, pod: Pod, change: Callable[[Pod], None]) -> None:
    mark(pod)
    change(pod)
    with pod, asking(pod.address) as service:
        converge(pod, origin.ledger)
        check(service)
        assert not replaced(pod)
        assert (live(pod) / "boot").read_text() != "another-boot"
        assert not (live(pod) / "suspect").exists()


def test_another_boots_damage_is_found_before_anything_is_answered(origin: Origin, pod: Pod) -> None:
    pod.change(SIDESTEP_CONTROL_PLANE="127.0.0.1:1", SIDESTEP_SCRUB_INTERVAL="1h")
    mark(pod)
    flip_record_bytes(pod)
    age_the_boot(pod)
    with pod, asking(pod.address) as service:
        # It is put aside once an empty one has taken its place.
        until(lambda: len(list(pod.data_dir.glob("quarantine-*"))) == 1, "the damaged generation put aside", WITHIN_S)
        assert replaced(pod)
        until(lambda: len(service.refusals) > 20, "calls")
        service.stop()
        assert service.answers == []
        assert service.problems == []


def test_data_truncated_under_the_running_sidecar(origin: Origin, pod: Pod) -> None:
    with pod, asking(pod.address) as service:
        service.wait_for_answers(5, WITHIN_S)
        mark(pod)
        os.truncate(live(pod) / "data.mdb", 16384)
        until(lambda: replaced(pod), f"a new generation; {pod.log()}", WITHIN_S)
        converge(pod, origin.ledger)
        check(service)


def test_a_full_disk_keeps_the_last_good_data_until_there_is_room(origin: Origin, pod: Pod) -> None:
    with pod, asking(pod.address) as service:
        service.wait_for_answers(1, WITHIN_S)
        converge(pod, origin.ledger)
        agent = until(lambda: pod.child("agent"), "the agent")
        held = limits.prlimit(agent, limits.RLIMIT_FSIZE)
        size = (live(pod) / "data.mdb").stat().st_size
        limits.prlimit(agent, limits.RLIMIT_FSIZE, (size, held[1]))
        origin.plane.load(TENANT, [world.device(10_000 + number) for number in range(4_000)])
        until(lambda: pod.metric("sidestep_sync_refusals") == 1, f"a refusal; {pod.log()}", WITHIN_S)
        answered = len(service.answers)
        service.wait_for_answers(10, WITHIN_S)
        assert len(service.answers) > answered
        assert pod.child("agent") == agent, "the agent lives through it"
        # It would try again after five minutes by itself, and does at once with every new stream.
        pod.kill("agent")
        converge(pod, origin.ledger)
        check(service)


def test_a_store_too_small_for_the_data_answers_nothing_until_it_is_enlarged(origin: Origin, tmp_path: Path) -> None:
    with Plane(tmp_path / "cp") as plane:
        for record in world.resources():
            plane.put(record)
        fat = [world.device(number) for number in range(14_000)]
        for device in fat:
            for component in range(30):
                device.components[f"component-{component:02d}"] = os.urandom(16)
        plane.load(TENANT, fat)
        ledger = Ledger(plane.database)
        with Pod(tmp_path / "pod" / "data", plane.address, SIDESTEP_STORE_MAX="16MiB") as pod:
            with asking(pod.address) as service:
                until(lambda: pod.metric("sidestep_sync_refusals") == 1, f"a refusal; {pod.log()}", WITHIN_S)
                assert service.answers == []
                assert service.problems == []
            assert pod.stop() == 0
            pod.change(SIDESTEP_STORE_MAX="256MiB")
            pod.start()
            with asking(pod.address) as service:
                converge(pod, ledger)
                check(service)


@pytest.mark.e2e
@pytest.mark.parametrize("seed", range(20))
def test_bytes_flipped_anywhere(origin: Origin, pod: Pod, seed: int) -> None:
    """In this boot, so that the damage is found by whoever stumbles over it, or by the scrub."""
    rng = random.Random(seed)
    mark(pod)
    data = live(pod) / "data.mdb"
    content = bytearray(data.read_bytes())
    for _ in range(rng.choice((1, 10, 100, 1000))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    data.write_bytes(content)
    with pod, asking(pod.address) as service:
        until(lambda: replaced(pod) or pod.metric("sidestep_scrubs_total") > 1, f"the scrub; {pod.log()}", WITHIN_S)
        converge(pod, origin.ledger)
        service.wait_for_answers(12, WITHIN_S)
        service.stop()
        wrong = {answer.response.basis for answer in service.answers} & {decision_pb2.BASIS_EXEMPTION_GRANT}
        assert not wrong
        denied = [answer.response.outcome for answer in service.answers if answer.subject == "mallory"]
        assert decision_pb2.OUTCOME_ALLOW not in denied
