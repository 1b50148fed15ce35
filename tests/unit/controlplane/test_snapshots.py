"""Snapshots on offer, their file format, and the retention that goes with them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sidestep.v1 import report_pb2, sync_pb2

from controlplane.changes import Changes
from controlplane.errors import DamagedError, NotFoundError, StoreError
from controlplane.retention import Retention
from controlplane.snapshot_file import MAX_PAYLOAD_BYTES, open_snapshot, verify_snapshot
from controlplane.snapshots import Lease, Snapshots
from controlplane.store import MAX_VALUE_BYTES, Store, Write
from engine.digest import Digest
from engine.names import Collection, Lane

GRANTS, DEVICES = Collection.GRANTS, Collection.DEVICES


class Rig(NamedTuple):
    store: Store
    changes: Changes
    snapshots: Snapshots
    directory: Path

    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.snapshot"))


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Rig], Awaitable[None]]], None]:
    def run(scenario: Callable[[Rig], Awaitable[None]]) -> None:
        async def body() -> None:
            store = await Store.open(f"sqlite+aiosqlite:///{tmp_path}/cp.db")
            changes = Changes(store)
            snapshots = Snapshots(store, tmp_path / "snapshots")
            try:
                await changes.start()
                await snapshots.start()
                await scenario(Rig(store, changes, snapshots, tmp_path / "snapshots"))
            finally:
                await snapshots.stop()
                await changes.stop()
                await store.close()

        asyncio.run(body())

    return run


async def records_of(lease: Lease) -> list[tuple[int, str, bytes]]:
    payloads = [await lease.read() for _ in range(lease.chunks)]
    assert all(len(payload) <= MAX_PAYLOAD_BYTES for payload in payloads)
    assert sum(map(len, payloads)) == lease.offer.bytes
    records = [record for payload in payloads for record in sync_pb2.SnapshotRecords.FromString(payload).records]
    assert len(records) == lease.offer.records
    return [(int(record.collection), record.id, record.value) for record in records]


def devices(count: int, value: bytes = b"v" * 300) -> list[Write]:
    return [Write(DEVICES, f"d{n:05d}", value) for n in range(count)]


def test_a_snapshot_holds_the_whole_lane_in_order(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [*devices(990), Write(DEVICES, "é", b""), Write(65, "ip~1~a", b"s")])
        # The largest values stand alone in a chunk.
        await rig.store.commit("acme", [Write(DEVICES, f"big{n}", bytes(MAX_VALUE_BYTES)) for n in range(3)])
        await rig.store.commit("acme", [Write(GRANTS, "g", b"urgent")])
        lease = await rig.snapshots.lease("acme", Lane.BULK)
        records = await records_of(lease)
        async with rig.store.read_lane("acme", Lane.BULK) as (head, batches):
            assert records == [tuple(record) async for batch in batches for record in batch]
        assert (lease.offer.cursor.revision, lease.offer.cursor.digest) == (head.revision, head.digest)
        digest = Digest(lease.offer.digest_key)
        for record in records:
            digest.add(*record)
        assert digest.value() == head.digest
        lease.release()
        lease.release()

    run(scenario)


def test_an_empty_lane_is_a_snapshot_without_chunks(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", devices(1))
        lease = await rig.snapshots.lease("acme", Lane.URGENT)
        assert (lease.chunks, lease.offer.records, lease.offer.cursor.revision) == (0, 0, 0)
        lease.release()
        with pytest.raises(NotFoundError):
            await rig.snapshots.lease("nobody", Lane.URGENT)

    run(scenario)


def test_a_snapshot_is_built_once_however_many_ask(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", devices(1_000))
        leases = await asyncio.gather(*(rig.snapshots.lease("acme", Lane.BULK) for _ in range(50)))
        assert rig.snapshots.built == 1
        contents = await asyncio.gather(*(records_of(lease) for lease in leases))
        assert all(content == contents[0] for content in contents)
        for lease in leases:
            lease.release()

    run(scenario)


def test_a_file_is_reused_until_the_log_after_it_is_long(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", devices(10))
        (await rig.snapshots.lease("acme", Lane.BULK)).release()
        await rig.store.commit("acme", devices(1_000, b"new"))
        lease = await rig.snapshots.lease("acme", Lane.BULK)
        assert (lease.offer.cursor.revision, rig.snapshots.built) == (1, 1)
        await rig.store.commit("acme", devices(1, b"one more"))
        newer = await rig.snapshots.lease("acme", Lane.BULK)
        assert (newer.offer.cursor.revision, rig.snapshots.built) == (3, 2)
        # The old file is gone only when its last reader is.
        assert len(rig.files()) == 2
        assert rig.snapshots.oldest_leased(("acme", Lane.BULK)) == 1
        assert len(await records_of(lease)) == 10
        lease.release()
        assert [open_snapshot(path).revision for path in rig.files()] == [3]
        assert rig.snapshots.oldest_leased(("acme", Lane.BULK)) == 3
        newer.release()
        assert rig.snapshots.oldest_leased(("acme", Lane.BULK)) is None

    run(scenario)


def test_a_file_the_log_no_longer_leads_on_from_is_replaced(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        for n in range(3):
            await rig.store.commit("acme", devices(1, bytes([n])))
            if n == 0:
                (await rig.snapshots.lease("acme", Lane.BULK)).release()
        await rig.store.compact("acme", Lane.BULK, 2)
        lease = await rig.snapshots.lease("acme", Lane.BULK)
        assert lease.offer.cursor.revision == 3
        lease.release()
        assert len(rig.files()) == 1

    run(scenario)


def test_files_of_an_earlier_run_are_offered_if_they_are_intact(run: Any) -> None:
    async def first(rig: Rig) -> None:
        await rig.store.commit("acme", devices(1_000))
        (await rig.snapshots.lease("acme", Lane.BULK)).release()
        (rig.directory / "acme.2.1.1.ff.partial").write_bytes(b"cut off by a crash")

    async def intact(rig: Rig) -> None:
        assert list(rig.directory.glob("*.partial")) == []
        lease = await rig.snapshots.lease("acme", Lane.BULK)
        assert rig.snapshots.built == 0
        assert len(await records_of(lease)) == 1_000
        lease.release()
        path = rig.files()[0]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    async def damaged(rig: Rig) -> None:
        with pytest.raises(DamagedError):
            verify_snapshot(rig.files()[0])
        lease = await rig.snapshots.lease("acme", Lane.BULK)
        assert rig.snapshots.built == 1
        assert len(await records_of(lease)) == 1_000
        lease.release()
        assert len(rig.files()) == 1
        path = rig.files()[0]
        path.write_bytes(path.read_bytes()[:40])
        (rig.directory / "acme.2.1.1.00.snapshot").write_bytes(b"nonsense")

    async def cut_off(rig: Rig) -> None:
        assert rig.files() == []
        (await rig.snapshots.lease("acme", Lane.BULK)).release()
        assert rig.snapshots.built == 1

    for scenario in (first, intact, damaged, cut_off):
        run(scenario)


def test_a_file_of_another_database_is_not_offered(run: Any, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", devices(3))
        lease = await rig.snapshots.lease("acme", Lane.BULK)
        assert rig.snapshots.built == 1
        lease.release()

    run(scenario)
    for path in tmp_path.glob("cp.db*"):
        path.unlink()
    run(scenario)


def test_records_that_contradict_their_digest_are_not_offered(run: Any, tmp_path: Path) -> None:
    import sqlite3

    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", devices(3))
        with sqlite3.connect(tmp_path / "cp.db") as connection:
            connection.execute("UPDATE records SET value = x'00' WHERE id = 'd00001'")
        connection.close()
        with pytest.raises(DamagedError):
            await rig.snapshots.lease("acme", Lane.BULK)
        assert list(rig.directory.glob("acme*")) == []

    run(scenario)


def test_two_processes_cannot_share_a_directory(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        with pytest.raises(StoreError, match="in use"):
            await Snapshots(rig.store, rig.directory).start()

    run(scenario)


def test_compaction_keeps_the_log_bounded_but_not_shorter_than_a_lease_needs(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        retention = Retention(
            rig.store,
            rig.changes,
            rig.snapshots,
            log_entries=5,
            log_bytes=1 << 30,
            sidecars_s=3_600.0,
            journals_s=3_600.0,
        )
        await rig.store.commit("acme", devices(1))
        lease = await rig.snapshots.lease("acme", Lane.BULK)
        for n in range(19):
            await rig.store.commit("acme", [*devices(1, bytes([n])), Write(GRANTS, "g", bytes([n]))])
        await rig.changes.refresh()
        await retention.compact()
        # Urgent: nobody reads. Bulk: a stream is reading revision 1 and will need what follows.
        assert (await rig.store.backlog("acme", Lane.URGENT, 0)).entries == 5
        assert (await rig.store.changes("acme", Lane.BULK, 1, limit=1))[0].revision == 2
        lease.release()
        await retention.compact()
        assert (await rig.store.backlog("acme", Lane.BULK, 0)).entries == 5
        assert rig.files() == []
        again = await rig.snapshots.lease("acme", Lane.BULK)
        assert again.offer.cursor.revision == 20
        again.release()
        assert await retention.compact() == 0

    run(scenario)


def test_retention_forgets_journals_that_are_no_longer_reported(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rig: Rig) -> None:
        chain = report_pb2.JournalChain(chain="w0-0192f3c4a1b2", records=1, head=bytes(32))
        chain.report_time.GetCurrentTime()
        now = time.time()
        for sidecar, at in (("old", now - 3_700), ("new", now)):
            monkeypatch.setattr("controlplane.store.journals.time.time", lambda at=at: at)
            await rig.store.journals.report(sidecar, [chain])
        monkeypatch.undo()
        retention = Retention(
            rig.store,
            rig.changes,
            rig.snapshots,
            log_entries=5,
            log_bytes=1 << 30,
            sidecars_s=86_400.0,
            journals_s=3_600.0,
        )
        working = asyncio.create_task(retention.run())
        async with asyncio.timeout(10):
            while len(chains := await rig.store.journals.read("", ("", ""), 10)) == 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        working.cancel()
        assert [status.sidecar for status in chains] == ["new"]

    run(scenario)


def test_who_was_further_already_gets_a_snapshot_that_is_not_older(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [Write(GRANTS, "g1", b"x")])
        old = await rig.snapshots.lease("acme", Lane.URGENT)
        await rig.store.commit("acme", [Write(GRANTS, "g2", b"x")])
        # The file on offer would do, but not for whoever has been at revision 2.
        assert (await rig.snapshots.lease("acme", Lane.URGENT)).offer.cursor.revision == 1
        leases = await asyncio.gather(*(rig.snapshots.lease("acme", Lane.URGENT, (1, 2)) for _ in range(5)))
        assert [lease.offer.cursor.revision for lease in leases] == [2] * 5
        assert rig.snapshots.built == 2
        # Further than the control plane itself: there is nothing better than what there is, and nothing to build.
        ahead = await rig.snapshots.lease("acme", Lane.URGENT, (1, 99))
        assert (ahead.offer.cursor.revision, rig.snapshots.built) == (2, 2)
        for lease in (old, *leases, ahead):
            lease.release()

    run(scenario)


def test_an_offer_states_the_hash_of_its_chunks(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [Write(GRANTS, f"g{n}", bytes(1000)) for n in range(700)])
        lease = await rig.snapshots.lease("acme", Lane.URGENT)
        payloads = [await lease.read() for _ in range(lease.chunks)]
        assert lease.offer.chunks == len(payloads) > 1
        stated = b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads)
        assert lease.offer.payload_sha256 == hashlib.sha256(stated).digest()
        lease.release()

    run(scenario)
