"""The history of the rules: what GetRules answers for every revision there ever was, and HashSubject."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import admin_pb2 as api
from sidestep.v1 import resources_pb2 as pb

from controlplane.errors import ConflictError, NotFoundError
from controlplane.store import Store, Write
from engine.names import Collection, Lane
from engine.pseudonym import user_hash
from tests.fakes.admin import AdminServer

POLICIES, SETTINGS, GRANTS, DEVICES = Collection.POLICIES, Collection.SETTINGS, Collection.GRANTS, Collection.DEVICES
POLICY = """apiVersion: sidestep.dev/v1
kind: Policy
metadata: {{name: payments, tenant: acme}}
spec:
  match: {{actions: ["payments.*"]}}
  require: {{acr: {acr}, maxAge: 12h}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sidestep.db"


@pytest.fixture
def run(path: Path) -> Callable[[Callable[[Store], Awaitable[Any]]], Any]:
    """Runs a scenario against a store that is closed afterwards."""

    def run(scenario: Callable[[Store], Awaitable[Any]]) -> Any:
        async def body() -> Any:
            store = await Store.open(f"sqlite+aiosqlite:///{path}")
            try:
                return await scenario(store)
            finally:
                await store.close()

        return asyncio.run(body())

    return run


Run = Callable[[Callable[[Store], Awaitable[Any]]], Any]


def test_every_revision_keeps_its_rules(run: Run) -> None:
    chance = random.Random(7)

    async def scenario(store: Store) -> None:
        now: dict[tuple[int, str], bytes] = {}
        then: dict[int, list[tuple[int, str, bytes]]] = {0: []}
        for _ in range(60):
            writes = []
            for _ in range(chance.randrange(1, 4)):
                collection = chance.choice((POLICIES, POLICIES, SETTINGS, GRANTS, GRANTS, DEVICES))
                value = None if chance.random() < 0.3 else chance.randbytes(2)
                writes.append(Write(collection, chance.choice("abc"), value))
            committed = await store.commit("acme", writes)
            for write in writes:
                if write.collection in (POLICIES, SETTINGS):
                    key = (int(write.collection), write.id)
                    now.pop(key, None) if write.value is None else now.update({key: write.value})
            then[committed.heads[Lane.URGENT].revision] = sorted((*key, value) for key, value in now.items())
        head = max(then)
        assert head > 20
        for revision in range(head + 1):
            rules = await store.rules("acme", 1, revision)
            assert rules.records == then[revision]
            last = (rules.until_revision or head + 1) - 1
            assert rules.from_revision <= revision <= last
            # The range is right, and as long as can be: beside it a rule was written.
            assert all(then[inside] == rules.records for inside in range(rules.from_revision, last + 1))
        assert (await store.rules("acme", 1, head)).until_revision == 0

    run(scenario)


def test_a_change_to_other_records_begins_no_new_range(run: Run) -> None:
    async def scenario(store: Store) -> None:
        await store.commit("acme", [Write(GRANTS, "g1", b"one")])
        await store.commit("acme", [Write(POLICIES, "p", b"one")])
        await store.commit("acme", [Write(GRANTS, "g1", b"two")])
        await store.commit("acme", [Write(POLICIES, "p", None)])
        assert await store.rules("acme", 1, 1) == (0, 2, [])
        assert await store.rules("acme", 1, 2) == await store.rules("acme", 1, 3) == (2, 4, [(POLICIES, "p", b"one")])
        assert await store.rules("acme", 1, 4) == (4, 0, [])

    run(scenario)


def test_rules_that_are_not_recorded_are_not_found(run: Run) -> None:
    async def scenario(store: Store) -> None:
        await store.commit("acme", [Write(POLICIES, "p", b"one")])
        with pytest.raises(NotFoundError, match="tenants/other: not found"):
            await store.rules("other", 1, 0)
        with pytest.raises(NotFoundError, match="revision 2 are not there yet, the head is revision 1"):
            await store.rules("acme", 1, 2)
        with pytest.raises(NotFoundError, match="this is epoch 1"):
            await store.rules("acme", 2, 1)

    run(scenario)


def test_a_refused_commit_leaves_no_history(run: Run) -> None:
    async def scenario(store: Store) -> None:
        await store.commit("acme", [Write(POLICIES, "p", b"one")])
        with pytest.raises(ConflictError):
            await store.commit("acme", [Write(POLICIES, "p", b"two")], expect={(POLICIES, "p"): b"other"})
        await store.commit("acme", [Write(GRANTS, "g1", b"one")])
        assert await store.rules("acme", 1, 2) == (1, 0, [(POLICIES, "p", b"one")])

    run(scenario)


def test_compaction_leaves_the_history(run: Run) -> None:
    async def scenario(store: Store) -> None:
        for value in (b"one", b"two", b"three"):
            await store.commit("acme", [Write(POLICIES, "p", value)])
        assert await store.compact("acme", Lane.URGENT, 3) == 3
        assert (await store.rules("acme", 1, 1)).records == [(POLICIES, "p", b"one")]

    run(scenario)


def test_an_older_database_begins_its_history_with_what_it_holds(run: Run, path: Path) -> None:
    async def write(store: Store) -> None:
        await store.commit("acme", [Write(POLICIES, "p", b"one"), Write(GRANTS, "g1", b"one")])
        await store.commit("acme", [Write(SETTINGS, "default", b"two"), Write(POLICIES, "gone", b"x")])
        await store.commit("acme", [Write(POLICIES, "gone", None)])
        await store.commit("empty", [Write(GRANTS, "g1", b"one")])

    run(write)
    connection = sqlite3.connect(path)
    with connection:
        kept = ("schema", "heads", "records", "changes", "sidecars")
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if table not in kept:
                connection.execute(f"DROP TABLE {table}")
        connection.execute("UPDATE schema SET version = 1")
    connection.close()

    async def upgraded(store: Store) -> None:
        current = [(POLICIES, "p", b"one"), (SETTINGS, "default", b"two")]
        assert await store.rules("acme", 1, 3) == (3, 0, current)
        for tenant, before, start in (("acme", 2, 3), ("empty", 0, 1)):
            with pytest.raises(NotFoundError, match=f"were not recorded before revision {start}"):
                await store.rules(tenant, 1, before)
        assert await store.rules("empty", 1, 1) == (1, 0, [])
        await store.commit("acme", [Write(POLICIES, "p", b"three")])
        await store.commit("new", [Write(GRANTS, "g1", b"one")])
        assert await store.rules("acme", 1, 3) == (3, 4, current)
        assert await store.rules("new", 1, 0) == (0, 0, [])

    run(upgraded)

    async def again(store: Store) -> None:
        assert (await store.rules("acme", 1, 3)).until_revision == 4

    run(again)


# The service


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        yield running


def put(server: AdminServer, **record: Any) -> int:
    response = server.stub.PutResource(api.PutResourceRequest(resource=pb.Resource(**record)))
    return int(response.revision.revision)


def rules_at(server: AdminServer, revision: int, epoch: int = 1) -> api.GetRulesResponse:
    request = api.GetRulesRequest(parent="tenants/acme", revision=pb.Revision(epoch=epoch, revision=revision))
    response: api.GetRulesResponse = server.stub.GetRules(request)
    return response


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code(), str(error.value.details())


def test_rules_are_told_exactly_as_stored(server: AdminServer) -> None:
    name = "tenants/acme/policies/payments"
    for acr in ("nist-aal1", "nist-aal2"):
        put(server, policy=pb.Policy(name=name, source=POLICY.format(acr=acr)))
    put(server, settings=pb.Settings(name="tenants/acme/settings/default", risk_ceiling=80))
    server.stub.DeleteResource(api.DeleteResourceRequest(name=name))
    first, second, third, fourth = (rules_at(server, revision) for revision in (1, 2, 3, 4))
    assert [(r.from_revision, r.until_revision) for r in (first, second, third, fourth)] == [
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 0),
    ]
    assert [policy.version for rules in (first, second, third) for policy in rules.policies] == [1, 2, 2]
    assert ["nist-aal1" in rules.policies[0].document for rules in (first, second)] == [True, False]
    assert not fourth.policies
    assert [rules.HasField("settings") for rules in (first, second, third, fourth)] == [False, False, True, True]
    assert third.settings.risk_ceiling == 80
    stored = server.stub.GetResource(api.GetResourceRequest(name="tenants/acme/settings/default")).resource.settings
    assert third.settings == stored


def test_rules_that_are_not_known_say_why(server: AdminServer) -> None:
    put(server, policy=pb.Policy(name="tenants/acme/policies/payments", source=POLICY.format(acr="phr")))
    code, detail = refused(lambda: rules_at(server, 7))
    assert (code, detail) == (
        grpc.StatusCode.NOT_FOUND,
        "tenants/acme: the rules of revision 7 are not there yet, the head is revision 1",
    )
    assert refused(lambda: rules_at(server, 1, epoch=9))[0] is grpc.StatusCode.NOT_FOUND
    code, detail = refused(lambda: rules_at(server, 1, epoch=0))
    assert (code, detail.split(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "revision.epoch")
    assert refused(lambda: rules_at(server, 2**63 + 1))[0] is grpc.StatusCode.NOT_FOUND


def hashes(server: AdminServer, subject: str = "alice") -> list[api.SubjectHash]:
    request = api.HashSubjectRequest(name=f"tenants/acme/subjects/{subject}")
    return list(server.stub.HashSubject(request).hashes)


def test_a_subject_is_hashed_by_every_tenant_key_newest_first(server: AdminServer) -> None:
    assert hashes(server) == []
    keys = {"old": 100, "new": 300, "middle": 200}
    for key_id, start in keys.items():
        key = pb.Key(name=f"tenants/acme/keys/{key_id}", kind="KEY_KIND_TENANT")
        key.start_time.FromSeconds(start)
        if key_id == "old":
            key.expire_time.FromSeconds(400)
        put(server, key=key)
    put(server, key=pb.Key(name="tenants/acme/keys/fp", kind="KEY_KIND_FINGERPRINT"))
    put(server, key=pb.Key(name="tenants/acme/keys/always", kind="KEY_KIND_TENANT"))
    found = hashes(server)
    assert [item.key for item in found] == ["new", "middle", "old", "always"]
    assert [item.HasField("start_time") for item in found] == [True, True, True, False]
    assert [item.HasField("expire_time") for item in found] == [False, False, True, False]
    assert found[2].expire_time.seconds == 400
    for item in found:
        secret = pb.Key.FromString(server.run(server.store.get("acme", Collection.KEYS, item.key)) or b"").secret
        assert item.hash == user_hash(secret, "alice")
        assert secret.hex() not in str(item)
    assert len({item.hash for item in [*found, *hashes(server, "bob")]}) == 8


def test_only_subjects_are_hashed(server: AdminServer) -> None:
    for name in ("tenants/acme/devices/d1", "tenants/acme", "tenants/acme/subjects/"):
        code, detail = refused(lambda name=name: server.stub.HashSubject(api.HashSubjectRequest(name=name)))  # type: ignore[misc]
        assert (code, detail.split(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "name")
