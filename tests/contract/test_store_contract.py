"""The contract every store must keep, whatever the database."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from sidestep.v1 import admin_pb2, sync_pb2

from controlplane.errors import CompactedError, ConflictError, NotFoundError, SchemaError, SettingsError, StoreError
from controlplane.store import MAX_COMMIT_BYTES, MAX_VALUE_BYTES, MAX_WRITES, Committed, Store, Write
from engine.digest import EMPTY, Digest
from engine.errors import InvalidInputError
from engine.names import Collection, Lane

POLICIES, GRANTS, DEVICES, SIGNALS = Collection.POLICIES, Collection.GRANTS, Collection.DEVICES, Collection.SIGNALS

Scenario = Callable[[Callable[[Store], Awaitable[Any]]], Any]


@pytest.fixture
def run(url: str) -> Scenario:
    """Runs a scenario against a store that is closed afterwards."""

    def run(scenario: Callable[[Store], Awaitable[Any]]) -> Any:
        async def body() -> Any:
            store = await Store.open(url)
            try:
                return await scenario(store)
            finally:
                await store.close()

        return asyncio.run(body())

    return run


async def read_lane(store: Store, tenant: str, lane: Lane) -> tuple[Any, list[tuple[int, str, bytes]]]:
    async with store.read_lane(tenant, lane) as (head, batches):
        return head, [record async for batch in batches for record in batch]


async def recomputed(store: Store, tenant: str, lane: Lane) -> bytes:
    head, records = await read_lane(store, tenant, lane)
    digest = Digest(head.digest_key)
    for record in records:
        digest.add(*record)
    return digest.value()


def test_a_tenant_comes_into_being_with_both_lanes_at_its_first_commit(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        assert await store.heads() == []
        committed = await store.commit("acme", [Write(GRANTS, "g1", b"one")])
        assert committed.changed == 1
        urgent, bulk = await store.heads()
        assert committed.heads == {Lane.URGENT: urgent, Lane.BULK: bulk}
        assert (urgent.epoch, urgent.revision, bulk.revision, bulk.digest) == (1, 1, 0, EMPTY)
        assert urgent.digest_key != bulk.digest_key
        assert await store.heads(["acme", "other"]) == [urgent, bulk]
        assert await store.heads([]) == []

    run(scenario)


def test_what_was_committed_is_read_back_and_survives_a_restart(run: Scenario) -> None:
    async def write(store: Store) -> Committed:
        await store.commit("acme", [Write(GRANTS, "g1", b"one"), Write(DEVICES, "d1", b"two")])
        return await store.commit("acme", [Write(GRANTS, "g1", b"three"), Write(DEVICES, "d1", None)])

    async def read(store: Store) -> None:
        assert await store.get("acme", GRANTS, "g1") == b"three"
        assert await store.get("acme", DEVICES, "d1") is None
        assert await store.get("other", GRANTS, "g1") is None
        assert await store.heads() == list(committed.heads.values())

    committed = run(write)
    run(read)


def test_one_revision_per_lane_touched_and_deltas_that_chain(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        both = await store.commit("acme", [Write(GRANTS, "g1", b"one"), Write(DEVICES, "d1", b"two")])
        assert [head.revision for head in both.heads.values()] == [1, 1]
        after = await store.commit("acme", [Write(GRANTS, "g1", None), Write(POLICIES, "p", b"")])
        assert [head.revision for head in after.heads.values()] == [2, 1]
        first, second = [
            sync_pb2.Delta.FromString(entry.delta) for entry in await store.changes("acme", Lane.URGENT, 0)
        ]
        assert (first.tenant, first.lane, first.epoch, first.revision) == ("acme", 1, 1, 1)
        assert first.previous_digest == EMPTY
        assert first.digest == second.previous_digest == both.heads[Lane.URGENT].digest
        assert second.digest == after.heads[Lane.URGENT].digest
        deleted, put = second.changes
        assert (deleted.id, deleted.WhichOneof("change"), deleted.deleted) == ("g1", "deleted", True)
        # An empty value is a record all the same.
        assert (put.id, put.WhichOneof("change"), put.value) == ("p", "value", b"")
        assert second.commit_time.ToNanoseconds() > 0

    run(scenario)


def test_writes_that_change_nothing_make_no_revision(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        first = await store.commit("acme", [Write(GRANTS, "g1", b"one")])
        assert await store.commit("acme", [Write(GRANTS, "g1", b"one"), Write(GRANTS, "g2", None)]) == Committed(
            0, first.heads
        )
        mixed = await store.commit("acme", [Write(GRANTS, "g1", b"one"), Write(GRANTS, "g2", b"two")])
        assert mixed.changed == 1
        entry = (await store.changes("acme", Lane.URGENT, 1))[0]
        assert [change.id for change in sync_pb2.Delta.FromString(entry.delta).changes] == ["g2"]

    run(scenario)


def test_of_two_writes_to_one_record_the_later_counts(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        committed = await store.commit("acme", [Write(GRANTS, "g", b"one"), Write(GRANTS, "g", b"two")])
        assert committed.changed == 1
        assert await store.get("acme", GRANTS, "g") == b"two"
        assert await recomputed(store, "acme", Lane.URGENT) == committed.heads[Lane.URGENT].digest

    run(scenario)


@pytest.mark.parametrize("expected", [b"other", None])
def test_an_expectation_that_fails_writes_nothing(run: Scenario, expected: bytes | None) -> None:
    async def scenario(store: Store) -> None:
        before = await store.commit("acme", [Write(GRANTS, "g", b"one")])
        with pytest.raises(ConflictError):
            await store.commit(
                "acme", [Write(GRANTS, "g", b"two"), Write(DEVICES, "d", b"x")], expect={(GRANTS, "g"): expected}
            )
        assert await store.heads() == list(before.heads.values())
        assert await store.get("acme", DEVICES, "d") is None

    run(scenario)


def test_an_expectation_that_holds_lets_the_write_pass_also_about_another_record(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        await store.commit("acme", [Write(GRANTS, "g", b"one")])
        expect: dict[tuple[int, str], bytes | None] = {(GRANTS, "g"): b"one", (DEVICES, "d"): None}
        assert (await store.commit("acme", [Write(GRANTS, "g", b"two")], expect=expect)).changed == 1

    run(scenario)


@pytest.mark.parametrize(
    ("tenant", "writes", "field"),
    [
        ("Acme", [Write(GRANTS, "g", b"")], "tenant"),
        ("acme", [Write(GRANTS, str(n), b"") for n in range(MAX_WRITES + 1)], "writes"),
        ("acme", [Write(0, "g", b"")], "writes[0].collection"),
        ("acme", [Write(GRANTS, "g", b""), Write(128, "g", b"")], "writes[1].collection"),
        ("acme", [Write(GRANTS, "", b"")], "writes[0].id"),
        ("acme", [Write(GRANTS, "g", bytes(MAX_VALUE_BYTES + 1))], "writes[0].value"),
        ("acme", [Write(GRANTS, str(n), bytes(MAX_VALUE_BYTES)) for n in range(17)], "writes"),
    ],
)
def test_a_commit_beyond_a_limit_names_the_field(run: Scenario, tenant: str, writes: list[Write], field: str) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(InvalidInputError) as raised:
            await store.commit(tenant, writes)
        assert raised.value.field == field
        assert await store.heads() == []

    run(scenario)


def test_the_largest_commit_fits_a_grpc_message(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        share = MAX_COMMIT_BYTES // MAX_WRITES
        await store.commit("acme", [Write(DEVICES, f"{n:0128d}", bytes(share)) for n in range(MAX_WRITES)])
        (entry,) = await store.changes("acme", Lane.BULK, 0)
        assert len(entry.delta) < 4 * 1024 * 1024 - 1024

    run(scenario)


def test_list_pages_in_byte_order_and_by_prefix(run: Scenario) -> None:
    ids = ["a", "a.b", "ab", "aé", "a\U0010ffff", "b", "B", "%", "a%", "a_"]

    async def scenario(store: Store) -> None:
        await store.commit("acme", [Write(GRANTS, record_id, record_id.encode()) for record_id in ids])
        await store.commit("other", [Write(GRANTS, "a", b"not mine")])
        ordered = sorted(ids, key=str.encode)
        assert [record_id for record_id, _ in await store.list("acme", GRANTS)] == ordered
        first = await store.list("acme", GRANTS, limit=4)
        rest = await store.list("acme", GRANTS, after=first[-1][0])
        assert [record_id for record_id, _ in first + rest] == ordered
        assert dict(rest)["b"] == b"b"
        for prefix in ("a", "a%", "a\U0010ffff", "B", "zz"):
            listed = [record_id for record_id, _ in await store.list("acme", GRANTS, prefix=prefix)]
            assert listed == [record_id for record_id in ordered if record_id.startswith(prefix)]
        assert await store.count("acme", GRANTS) == len(ids)
        assert await store.count("acme", DEVICES) == 0

    run(scenario)


def test_digests_of_one_source(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        writes = [Write(SIGNALS, f"ip~{n}~{source}", f"{n}".encode()) for n in range(700) for source in ("ipsum",)]
        await store.commit("acme", writes)
        await store.commit("acme", [Write(SIGNALS, f"ip~{n}~own", b"x") for n in range(700)])
        await store.commit("acme", [Write(SIGNALS, "ip~1~IPSUM", b"x")])
        async with aclosing(store.digests("acme", SIGNALS, id_suffix="~ipsum")) as batches:
            mine = [pair async for batch in batches for pair in batch]
        assert mine == sorted((write.id, blake2b(write.value or b"", digest_size=16).digest()) for write in writes)
        everything = [pair async for batch in store.digests("acme", SIGNALS) for pair in batch]
        assert len(everything) == 1401

    run(scenario)


def test_a_lane_is_read_in_order_and_at_one_moment(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        for start in range(0, 3_000, 1_000):
            await store.commit("acme", [Write(DEVICES, f"d{n:05d}", b"v") for n in range(start, start + 1_000)])
        await store.commit("acme", [Write(SIGNALS, "ip~1~a", b"s"), Write(GRANTS, "g", b"urgent")])
        async with store.read_lane("acme", Lane.BULK) as (head, batches):
            records: list[tuple[int, str, bytes]] = []
            async for batch in batches:
                if not records:
                    await store.commit("acme", [Write(DEVICES, "d09999", b"late"), Write(DEVICES, "d02999", None)])
                records.extend(batch)
        assert head.revision == 4
        assert records == [(64, f"d{n:05d}", b"v") for n in range(3_000)] + [(65, "ip~1~a", b"s")]
        digest = Digest(head.digest_key)
        for record in records:
            digest.add(*record)
        assert digest.value() == head.digest
        with pytest.raises(NotFoundError):
            await read_lane(store, "nobody", Lane.BULK)

    run(scenario)


def test_commits_of_many_at_once_leave_no_gap_and_lose_nothing(run: Scenario, url: str) -> None:
    async def scenario(store: Store) -> None:
        # A second store stands for another process: it shares no lock in memory with the first.
        other = await Store.open(url)
        try:
            await asyncio.gather(
                *(
                    (store, other)[n % 2].commit("acme", [Write(GRANTS, f"g{n % 7}", f"{n}".encode())])
                    for n in range(60)
                )
            )
        finally:
            await other.close()
        entries = await store.changes("acme", Lane.URGENT, 0)
        assert [entry.revision for entry in entries] == list(range(1, 61))
        deltas = [sync_pb2.Delta.FromString(entry.delta) for entry in entries]
        assert [delta.previous_digest for delta in deltas[1:]] == [delta.digest for delta in deltas[:-1]]
        assert deltas[-1].digest == await recomputed(store, "acme", Lane.URGENT)

    run(scenario)


def test_a_cancelled_caller_does_not_interrupt_a_commit(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        await store.commit("acme", [Write(GRANTS, "g", b"0")])
        told = asyncio.Event()
        store.watch(lambda _heads: told.set())
        task = asyncio.create_task(store.commit("acme", [Write(GRANTS, "g", b"1")]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            await told.wait()
        assert await store.get("acme", GRANTS, "g") == b"1"

    run(scenario)


def test_watchers_hear_the_heads_of_commits_that_changed_something(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        heard: list[list[Any]] = []
        store.watch(lambda heads: heard.append(list(heads)))
        committed = await store.commit("acme", [Write(GRANTS, "g", b"1")])
        await store.commit("acme", [Write(GRANTS, "g", b"1")])
        assert heard == [list(committed.heads.values())]

    run(scenario)


def test_position_differs_after_every_commit(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        seen = [await store.position()]
        for tenant, write in (("a", Write(GRANTS, "g", b"1")), ("a", Write(DEVICES, "d", b"1")), ("b", None)):
            await store.commit(tenant, [write] if write else [])
            seen.append(await store.position())
        assert len(set(seen)) == 4

    run(scenario)


def test_the_log_reads_from_a_revision_and_says_when_it_no_longer_reaches(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        for n in range(50):
            await store.commit("acme", [Write(GRANTS, "g", f"{n}".encode())])
        assert [entry.revision for entry in await store.changes("acme", Lane.URGENT, 45)] == [46, 47, 48, 49, 50]
        assert [entry.revision for entry in await store.changes("acme", Lane.URGENT, 10, limit=2)] == [11, 12]
        assert await store.changes("acme", Lane.URGENT, 50) == []
        assert await store.compact("acme", Lane.URGENT, 40) == 40
        assert (await store.changes("acme", Lane.URGENT, 40))[0].revision == 41
        for after in (0, 39):
            with pytest.raises(CompactedError):
                await store.changes("acme", Lane.URGENT, after)
        backlog = await store.backlog("acme", Lane.URGENT, 45)
        assert (backlog.entries, backlog.records) == (5, 5)
        assert await store.compact("acme", Lane.URGENT, 50) == 10
        assert await store.changes("acme", Lane.URGENT, 50) == []
        with pytest.raises(CompactedError):
            await store.changes("acme", Lane.URGENT, 49)
        assert await store.compact("acme", Lane.URGENT, 50) == 0
        assert await store.get("acme", GRANTS, "g") == b"49"

    run(scenario)


def test_log_excess_respects_both_bounds(run: Scenario) -> None:
    async def scenario(store: Store) -> None:
        for n in range(10):
            await store.commit("acme", [Write(GRANTS, "g", bytes(1_000) + bytes([n]))])
        # Not three times one: the time of a commit takes a byte more or less.
        last_three = (await store.backlog("acme", Lane.URGENT, 7)).bytes
        assert last_three > 3_000
        everything = 1 << 40
        assert await store.log_excess("acme", Lane.URGENT, max_entries=10, max_bytes=everything) == 0
        assert await store.log_excess("acme", Lane.URGENT, max_entries=9, max_bytes=everything) == 1
        assert await store.log_excess("acme", Lane.URGENT, max_entries=10, max_bytes=last_three) == 7
        assert await store.log_excess("acme", Lane.URGENT, max_entries=10, max_bytes=last_three - 1) == 8

    run(scenario)


def status(name: str, tenant: str = "acme", *, connected: bool = True, seen_s: int = 1_000) -> admin_pb2.SidecarStatus:
    result = admin_pb2.SidecarStatus(sidecar=name, instance="i", connected=connected)
    result.cursors.add(tenant=tenant, lane="LANE_URGENT", revision=3)
    result.seen_time.FromSeconds(seen_s)
    return result


def test_sidecars_are_seen_at_once_and_kept(run: Scenario) -> None:
    async def first(store: Store) -> None:
        live = status("a")
        store.record_sidecar(live)
        store.record_sidecar(status("b", "other"))
        store.record_sidecar(status("c", connected=False))
        assert [found.sidecar for found in await store.sidecars()] == ["a", "b", "c"]
        await store.flush_sidecars()
        live.cursors[0].revision = 4
        store.record_sidecar(live)
        assert [found.cursors[0].revision for found in await store.sidecars("acme")] == [4, 3]
        assert [found.sidecar for found in await store.sidecars(limit=1)] == ["a"]
        assert [found.sidecar for found in await store.sidecars(after="a", limit=1)] == ["b"]
        assert [found.sidecar for found in await store.sidecars("acme", after="a", limit=1)] == ["c"]

    async def later(store: Store) -> None:
        found = await store.sidecars("acme")
        assert [(one.sidecar, one.connected, one.cursors[0].revision) for one in found] == [
            ("a", True, 4),
            ("c", False, 3),
        ]
        assert await store.forget_sidecars(seen_before=2_000) == 1
        assert [one.sidecar for one in await store.sidecars("acme")] == ["a"]

    run(first)
    run(later)


def test_a_sidecar_whose_control_plane_died_is_not_connected_and_is_forgotten(
    run: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def first(store: Store) -> None:
        store.record_sidecar(status("a"))

    async def later(store: Store) -> None:
        assert [found.connected for found in await store.sidecars()] == [False]
        assert await store.forget_sidecars(seen_before=500) == 0
        assert await store.forget_sidecars(seen_before=2_000) == 1
        assert await store.sidecars() == []

    run(first)
    now = __import__("time").time()
    monkeypatch.setattr("controlplane.store.sidecars.time.time", lambda: now + 91)
    run(later)


def test_a_newer_or_foreign_sqlite_file_is_refused(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/data/sidestep.db"

    async def open_and_close() -> None:
        await (await Store.open(url)).close()

    asyncio.run(open_and_close())
    path = tmp_path / "data" / "sidestep.db"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema SET version = 99")
    connection.close()
    with pytest.raises(SchemaError, match="99"):
        asyncio.run(open_and_close())
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (id)")
    connection.close()
    with pytest.raises(SchemaError, match="not Sidestep's"):
        asyncio.run(open_and_close())
    for leftover in path.parent.glob("sidestep.db*"):
        leftover.unlink()
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError):
        asyncio.run(open_and_close())


@pytest.mark.parametrize(
    "bad", ["mysql://x/y", "sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "::", "sqlite:///x"]
)
def test_a_url_that_cannot_be_served_is_refused(bad: str) -> None:
    with pytest.raises(SettingsError):
        asyncio.run(Store.open(bad))


def test_two_stores_may_be_opened_on_a_new_database_at_once(url: str) -> None:
    async def scenario() -> None:
        stores = await asyncio.gather(*(Store.open(url) for _ in range(4)))
        await asyncio.gather(*(store.close() for store in stores))

    asyncio.run(scenario())
