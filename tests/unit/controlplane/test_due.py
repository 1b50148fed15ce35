"""Grants that expire or lapse by themselves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from sidestep.v1 import audit_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.due import DueGrants
from controlplane.store import Store, Write
from engine.names import Collection, Lane

NOW = 1_800_000_000.0
DAY = 86_400


def grant(
    name: str, state: str = "ACTIVE", expires: float = NOW + DAY, review: float | None = None, **more: Any
) -> Write:
    record = pb.Grant(name=f"tenants/acme/grants/{name}", state=f"GRANT_STATE_{state}", subject="a", **more)
    record.start_time.FromSeconds(int(NOW - 10 * DAY))
    record.expire_time.FromSeconds(int(expires))
    if review is not None:
        record.review_time.FromSeconds(int(review))
    return Write(Collection.GRANTS, name, record.SerializeToString(deterministic=True))


def settings(max_validity_days: int) -> Write:
    record = pb.Settings(name="tenants/acme/settings/default")
    made = record.grant_classes.add(id="default")
    made.ceiling.acr = "phr"
    made.ceiling.max_age.FromSeconds(60)
    made.max_validity.FromSeconds(max_validity_days * DAY)
    return Write(Collection.SETTINGS, "default", record.SerializeToString(deterministic=True))


async def states(store: Store) -> dict[str, str]:
    rows = await store.list("acme", Collection.GRANTS, limit=100)
    return {
        name: pb.GrantState.Name(pb.Grant.FromString(value).state).removeprefix("GRANT_STATE_") for name, value in rows
    }


async def entries(store: Store) -> list[audit_pb2.AuditEntry]:
    return [audit_pb2.AuditEntry.FromString(record.entry) for _, record in await store.audit.read("acme", 0, 100)]


async def open_store(folder: Path) -> Store:
    return await Store.open(f"sqlite+aiosqlite:///{folder}/due.db")


def test_grants_expire_and_lapse_when_their_time_has_come(tmp_path: Path) -> None:
    async def play() -> None:
        store = await open_store(tmp_path)
        await store.commit(
            "acme",
            [
                grant("ended", expires=NOW),
                grant("ends-later", expires=NOW + 1),
                grant("ended-while-requested", "REQUESTED", expires=NOW),
                grant("ended-and-revoked", "REVOKED", expires=NOW),
                grant("unreviewed", review=NOW),
                grant("unreviewed-while-suspended", "SUSPENDED", review=NOW),
                grant("reviewed-later", review=NOW + 1),
                grant("both", expires=NOW, review=NOW),
                Write(Collection.GRANTS, "not-a-grant", b"\xff\xff"),
            ],
        )
        assert await DueGrants(store, 1.0).look(NOW) == 5
        await store.commit("acme", [Write(Collection.GRANTS, "not-a-grant", None)])
        assert await states(store) == {
            "ended": "EXPIRED",
            "ends-later": "ACTIVE",
            "ended-while-requested": "EXPIRED",
            "ended-and-revoked": "REVOKED",
            "unreviewed": "LAPSED",
            "unreviewed-while-suspended": "LAPSED",
            "reviewed-later": "ACTIVE",
            "both": "EXPIRED",
        }
        told = {
            entry.name.rpartition("/")[2]: (entry.actor, entry.action, entry.reason) for entry in await entries(store)
        }
        assert told["ended"] == ("controlplane", "grant.expire", "its time is over")
        assert told["unreviewed"] == ("controlplane", "grant.lapse", "nobody reviewed it in time")
        assert len(told) == 5
        await store.close()

    asyncio.run(play())


def test_a_class_that_was_tightened_ends_its_grants(tmp_path: Path) -> None:
    async def play() -> None:
        store = await open_store(tmp_path)
        await store.commit("acme", [settings(11), grant("old")])
        due = DueGrants(store, 1.0)
        assert await due.look(NOW) == 0
        await store.commit("acme", [settings(10)])
        assert await due.look(NOW) == 1
        assert await states(store) == {"old": "EXPIRED"}
        await store.close()

    asyncio.run(play())


def test_replicas_do_it_once(tmp_path: Path) -> None:
    async def play() -> None:
        store = await open_store(tmp_path)
        await store.commit("acme", [grant(f"g{number}", expires=NOW) for number in range(20)])
        done = await asyncio.gather(*(DueGrants(store, 1.0).look(NOW) for _ in range(3)))
        assert sum(done) == 20
        assert len(await entries(store)) == 20
        await store.close()

    asyncio.run(play())


def test_a_tenant_is_read_again_only_when_something_changed_or_may_be_due(tmp_path: Path) -> None:
    async def play() -> None:
        store = await open_store(tmp_path)
        await store.commit("acme", [grant("g1", expires=NOW + 100)])
        reads = 0
        listed = store.list

        async def counting(*args: Any, **more: Any) -> Any:
            nonlocal reads
            reads += 1
            return await listed(*args, **more)

        store.list = counting  # type: ignore[method-assign]
        due = DueGrants(store, 1.0)
        await due.look(NOW)
        seen = reads
        await due.look(NOW + 99)
        assert reads == seen
        assert await due.look(NOW + 100) == 1
        await due.look(NOW + 101)
        seen = reads
        await due.look(NOW + 5_000)
        assert reads == seen
        await store.commit("acme", [grant("g2", expires=NOW + 200)])
        assert await due.look(NOW + 5_000) == 1
        await store.close()

    asyncio.run(play())


def test_a_change_in_between_is_left_to_the_next_look(tmp_path: Path) -> None:
    async def play() -> None:
        store = await open_store(tmp_path)
        await store.commit("acme", [grant("g1", expires=NOW)])
        commit = store.commit

        async def interrupted(tenant: str, writes: Any, **more: Any) -> Any:
            store.commit = commit  # type: ignore[method-assign]
            await commit("acme", [grant("g1", expires=NOW + 50)])
            return await commit(tenant, writes, **more)

        store.commit = interrupted  # type: ignore[method-assign]
        due = DueGrants(store, 1.0)
        assert await due.look(NOW) == 0
        assert await states(store) == {"g1": "ACTIVE"}
        assert await due.look(NOW + 50) == 1
        heads = {head.lane: head.revision for head in await store.heads(["acme"])}
        assert heads[Lane.URGENT] == 3
        await store.close()

    asyncio.run(play())
