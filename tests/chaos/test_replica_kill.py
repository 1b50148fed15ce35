"""SIGKILL of control planes during writes, on both databases: what was acknowledged is there, and no revision is used twice."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from sidestep.v1 import admin_pb2, sync_pb2

from controlplane.store import Store
from engine.digest import Digest
from engine.names import Collection, Lane
from tests.chaos import world
from tests.chaos.pod import Plane, pass_time
from tests.fakes.stock import TENANT
from tests.processes import until

if TYPE_CHECKING:
    from tests.fakes.postgres import Postgres

WITHIN_S = 30.0


class Writing:
    """One operator, in a thread: puts versions of devices of its own, each once, and notes what was acknowledged."""

    def __init__(self, plane: Plane, first: int) -> None:
        self._plane = plane
        self._first = first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"operator {first}")
        # (revision, device, version), in the order of acknowledgement; versions that may or may not be there.
        self.acknowledged: list[tuple[int, int, int]] = []
        self.cut_off = 0
        self.problems: list[str] = []

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for version in itertools.count(1):
            number = self._first + version % 10
            request = admin_pb2.PutResourceRequest()
            request.resource.device.CopyFrom(world.device(number, version))
            try:
                answer = self._plane.admin.PutResource(request, timeout=20, wait_for_ready=True)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    self.problems.append(f"{error.code()}: {error.details()}")
                self.cut_off += 1
            else:
                self.acknowledged.append((answer.revision.revision, number, version))
            if self._stop.is_set():
                return


def test_sigkill_of_replicas_loses_no_acknowledged_write(postgres: Postgres, tmp_path: Path) -> None:
    """The short version; of SQLite test_controlplane_kill has it."""
    url = postgres.create()
    survive(url, tmp_path, kills=3)
    postgres.drop(url)


@pytest.mark.e2e
def test_sigkill_of_the_control_plane_loses_no_acknowledged_write_for_long(url: str, tmp_path: Path) -> None:
    survive(url, tmp_path, kills=30)


def survive(url: str, tmp_path: Path, kills: int) -> None:
    # One process has SQLite for itself.
    replicas = 1 if url.startswith("sqlite") else 2
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    rng = random.Random(seed)
    settings = {"SIDESTEP_CP_DATABASE_URL": url, "TMPDIR": str(tmp_path)}
    with ExitStack() as stack:
        planes = [stack.enter_context(Plane(tmp_path / f"plane-{n}", **settings)) for n in range(replicas)]
        for resource in world.resources():
            planes[0].put(resource)
        writers = [
            stack.enter_context(Writing(plane, 1_000 * (2 * at + half)))
            for at, plane in enumerate(planes)
            for half in range(2)
        ]
        for kill in range(kills):
            plane = planes[kill % replicas]
            seen = [len(writer.acknowledged) for writer in writers]
            until(
                lambda seen=seen: all(len(w.acknowledged) > n for w, n in zip(writers, seen, strict=True)),
                "acknowledged writes",
                WITHIN_S,
            )
            pass_time(rng, 0.1)
            plane.kill()
            plane.start()
        for writer in writers:
            writer.__exit__()
        asyncio.run(check(url, writers))
    sys.stdout.write(f"{kills} kills, {[(len(w.acknowledged), w.cut_off) for w in writers]} acknowledged, cut off\n")


async def check(url: str, writers: list[Writing]) -> None:
    assert [problem for writer in writers for problem in writer.problems] == []
    store = await Store.open(url)
    try:
        async with store.read_lane(TENANT, Lane.BULK) as (head, batches):
            digest = Digest(head.digest_key)
            held = {}
            async for batch in batches:
                for collection, record_id, value in batch:
                    digest.add(collection, record_id, value)
                    held[collection, record_id] = value
        assert digest.value() == head.digest
        log: dict[int, sync_pb2.Delta] = {}
        while entries := await store.changes(TENANT, Lane.BULK, len(log)):
            log |= {entry.revision: sync_pb2.Delta.FromString(entry.delta) for entry in entries}
        assert sorted(log) == list(range(1, head.revision + 1))
        for before, after in itertools.pairwise(sorted(log)):
            assert log[after].previous_digest == log[before].digest
    finally:
        await store.close()
    # Every acknowledged write is the commit it was told to be, and no two were told the same.
    told = [revision for writer in writers for revision, _, _ in writer.acknowledged]
    assert len(told) == len(set(told))
    for writer in writers:
        newest: dict[int, int] = {}
        for revision, number, version in writer.acknowledged:
            (change,) = log[revision].changes
            assert change.id == f"d{number:07d}"
            assert version >= newest.get(number, 0)
            newest[number] = version
        for number in newest:
            last = max(revision for revision, delta in log.items() if delta.changes[0].id == f"d{number:07d}")
            # What came after the last acknowledged one was cut off, and may have been kept.
            assert last >= max(revision for revision, device, _ in writer.acknowledged if device == number)
            assert held[Collection.DEVICES, f"d{number:07d}"] == log[last].changes[0].value
