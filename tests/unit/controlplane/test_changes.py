"""The change log in memory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sidestep.v1 import sync_pb2

from controlplane.changes import Changes, Frame, Ring
from controlplane.errors import CompactedError
from controlplane.store import Store, Write
from engine.names import Collection, Lane

GRANTS, DEVICES = Collection.GRANTS, Collection.DEVICES
KEY = ("acme", Lane.URGENT)
WITHIN_S = 5.0


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    def run(scenario: Callable[[Store, Changes], Awaitable[None]], poll_s: float = 0.05) -> None:
        async def body() -> None:
            store = await Store.open(f"sqlite+aiosqlite:///{tmp_path}/cp.db")
            changes = Changes(store, poll_s=poll_s)
            try:
                await changes.start()
                await scenario(store, changes)
            finally:
                await changes.stop()
                await store.close()

        asyncio.run(body())

    return run


async def head_at(changes: Changes, revision: int, wake: asyncio.Event) -> None:
    async with asyncio.timeout(WITHIN_S):
        while KEY not in changes.heads or changes.heads[KEY].revision != revision:
            wake.clear()
            await wake.wait()


async def until(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


def revisions(frames: Any) -> list[int]:
    return [frame.revision for frame in frames]


def test_a_commit_of_this_process_wakes_streams_without_waiting_for_the_poll(run: Any) -> None:
    async def scenario(store: Store, changes: Changes) -> None:
        mine, other = asyncio.Event(), asyncio.Event()
        with changes.subscribe(mine, None) as updates, changes.subscribe(other, frozenset({"zeta"})) as elsewhere:
            committed = await store.commit("acme", [Write(GRANTS, "g", b"1")])
            await head_at(changes, 1, mine)
            assert updates.lanes == {KEY, ("acme", Lane.BULK)}
            assert (elsewhere.lanes, other.is_set()) == (set(), False)
        assert changes.heads[KEY] == committed.heads[Lane.URGENT]

    # A poll would come only after the deadline.
    run(scenario, poll_s=60.0)


def test_commits_of_another_process_are_seen_by_polling(run: Any, tmp_path: Path) -> None:
    async def scenario(store: Store, changes: Changes) -> None:
        other = await Store.open(f"sqlite+aiosqlite:///{tmp_path}/cp.db")
        try:
            wake = asyncio.Event()
            with changes.subscribe(wake, None):
                for n in range(1, 100):
                    await other.commit("acme", [Write(GRANTS, "g", bytes([n]))])
                await head_at(changes, 99, wake)
            for after in (0, 50, 98):
                assert revisions(await changes.read(KEY, after, 1)) == [after + 1]
            assert await changes.read(KEY, 99, 5) == []
        finally:
            await other.close()

    run(scenario)


def test_frames_are_encoded_responses_from_the_ring_and_from_the_log_alike(run: Any) -> None:
    async def scenario(store: Store, changes: Changes) -> None:
        wake = asyncio.Event()
        with changes.subscribe(wake, None):
            for n in range(3):
                await store.commit("acme", [Write(GRANTS, "g", bytes([n]))])
            await head_at(changes, 3, wake)
        ring = await changes.read(KEY, 1, 10)
        log = [entry.delta for entry in await store.changes("acme", Lane.URGENT, 1)]
        assert [sync_pb2.SyncResponse.FromString(frame.message).delta for frame in ring] == log

    run(scenario)


def test_reading_from_a_compacted_revision_raises(run: Any) -> None:
    async def scenario(store: Store, changes: Changes) -> None:
        for n in range(5):
            await store.commit("acme", [Write(GRANTS, "g", bytes([n]))])
        await store.compact("acme", Lane.URGENT, 5)
        fresh = Changes(store)
        await fresh.start()
        try:
            with pytest.raises(CompactedError):
                await fresh.read(KEY, 2, 1)
        finally:
            await fresh.stop()

    run(scenario)


def test_heads_that_cannot_be_read_are_not_current_until_they_can_again(run: Any, tmp_path: Path) -> None:
    async def scenario(store: Store, changes: Changes) -> None:
        assert changes.is_current()
        with sqlite3.connect(tmp_path / "cp.db") as connection:
            connection.execute("ALTER TABLE heads RENAME TO gone")
        await until(lambda: not changes.is_current())
        connection.execute("ALTER TABLE gone RENAME TO heads")
        connection.close()
        await until(changes.is_current)

    run(scenario)


def test_a_head_set_back_is_another_history(run: Any, tmp_path: Path) -> None:
    async def scenario(store: Store, changes: Changes) -> None:
        wake = asyncio.Event()
        with changes.subscribe(wake, None):
            for n in range(5):
                await store.commit("acme", [Write(GRANTS, "g", bytes([n]))])
            await head_at(changes, 5, wake)
            before = changes.history(KEY)
            with sqlite3.connect(tmp_path / "cp.db") as connection:
                connection.execute("UPDATE heads SET revision = 3 WHERE lane = 1")
            connection.close()
            await head_at(changes, 3, wake)
            assert changes.history(KEY) != before

    run(scenario)


def test_encoded_heads_follow_the_scope_and_every_change(run: Any) -> None:
    async def scenario(store: Store, changes: Changes) -> None:
        for tenant in ("b", "a", "c"):
            await store.commit(tenant, [Write(GRANTS, "g", b"1")])
        await changes.refresh()

        def heads(scope: frozenset[str] | None) -> list[tuple[str, int, int]]:
            beat = sync_pb2.Heartbeat.FromString(changes.encoded_heads(scope))
            return [(head.tenant, head.lane, head.revision) for head in beat.heads]

        assert heads(None) == [(tenant, lane, 2 - lane) for tenant in "abc" for lane in (1, 2)]
        assert heads(frozenset({"b"})) == [("b", 1, 1), ("b", 2, 0)]
        assert heads(frozenset()) == []
        await store.commit("b", [Write(DEVICES, "d", b"1")])
        await changes.refresh()
        assert heads(frozenset({"b"})) == [("b", 1, 1), ("b", 2, 1)]

    run(scenario)


def test_a_ring_is_bounded_over_all_tenants_and_forgets_the_oldest_first() -> None:
    ring = Ring(max_frames=4, max_bytes=1_000)
    for revision in (1, 2, 3):
        ring.append("a", Frame(revision, b"x"))
    ring.append("b", Frame(7, b"x"))
    assert revisions(ring.after("a", 0, 10)) == [1, 2, 3]
    assert revisions(ring.after("a", 1, 1)) == [2]
    ring.append("b", Frame(8, b"x"))
    assert ring.after("a", 0, 10) is None
    assert revisions(ring.after("a", 1, 10)) == [2, 3]
    assert ring.after("a", 3, 10) is None
    ring.append("b", Frame(9, bytes(998)))
    assert ring.after("a", 1, 10) is None
    assert revisions(ring.after("b", 7, 10)) == [8, 9]
    # A gap is never bridged.
    ring.append("b", Frame(11, b"x"))
    assert ring.after("b", 8, 10) is None
    assert revisions(ring.after("b", 10, 10)) == [11]
    ring.append("b", Frame(12, bytes(5_000)))
    assert ring.after("b", 11, 10) is None
