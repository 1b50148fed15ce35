"""Two control planes over one PostgreSQL, and a sidecar that does not care which of them it follows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from sidestep.client import Basis, Client, Outcome
from sidestep.v1 import admin_pb2, resources_pb2

from tests.chaos import world
from tests.chaos.pod import Plane, Pod
from tests.fakes.balancer import Balancer
from tests.fakes.stock import RECORDS, TENANT
from tests.integration.test_budgets import question
from tests.integration.test_restore import command
from tests.processes import Program, until

if TYPE_CHECKING:
    from tests.fakes.postgres import Postgres

GRANT = RECORDS["grants/g1"] | {"actions": ["payments.transfer1"]}
REVOKED = GRANT | {"state": "GRANT_STATE_REVOKED"}


@pytest.fixture
def planes(postgres: Postgres, tmp_path: Path) -> Iterator[tuple[Plane, Plane]]:
    url = postgres.create()
    settings = {
        "SIDESTEP_CP_DATABASE_URL": url,
        # Each looks for what is due, and must not trip over the other.
        "SIDESTEP_CP_DUE_INTERVAL": "50ms",
        "SIDESTEP_CP_REVIEW_INTERVAL": "100ms",
        "TMPDIR": str(tmp_path),
    }
    with ExitStack() as stack:
        stack.callback(postgres.drop, url)
        one, other = (stack.enter_context(Plane(tmp_path / name, **settings)) for name in ("a", "b"))
        yield one, other


def test_a_write_through_one_is_enforced_by_a_sidecar_of_the_other_which_goes_on_when_that_dies(
    planes: tuple[Plane, Plane], tmp_path: Path
) -> None:
    one, other = planes
    for resource in world.resources():
        one.put(resource)
    one.put(world.resource("grants/g1", GRANT))
    spent = RECORDS["grants/g1"] | {"actions": ["payments.transfer2"], "budget": {"max_count": 2}}
    one.put(world.resource("grants/spent", spent))
    with (
        Balancer([other.address, one.address]) as balancer,
        Pod(tmp_path / "pod" / "data", balancer.address) as pod,
        Client(pod.address) as client,
    ):

        def basis(number: int) -> Basis:
            return client.evaluate(**question(number)).basis

        until(lambda: basis(1) is Basis.EXEMPTION_GRANT, "the grant")
        assert set(balancer.went) == {other.address}
        one.put(world.resource("grants/g1", REVOKED))
        until(lambda: client.evaluate(**question(1)).outcome is Outcome.STEP_UP, "the revocation")
        until(lambda: basis(2) is Basis.EXEMPTION_GRANT, "a lease")
        # Both know of the sidecar, though only one has its stream.
        until(lambda: connected(one) == connected(other) == [True], "its status")

        other.kill()
        one.put(world.resource("grants/g2", GRANT))
        until(lambda: basis(1) is Basis.EXEMPTION_GRANT, "the grant from the other replica")
        assert balancer.went[-1] == one.address
        until(lambda: connected(one) == [True], "its status")
        # The books are the database's: what was spent by way of the dead one stays spent.
        until(lambda: basis(2) is Basis.EXEMPTION_GRANT, "the second use")
        for _ in range(5):
            assert client.evaluate(**question(2)).outcome is Outcome.STEP_UP

        other.start()
        assert other.heads(TENANT) == one.heads(TENANT)
        other.put(world.resource("grants/g2", REVOKED))
        until(lambda: client.evaluate(**question(1)).outcome is Outcome.STEP_UP, "the revocation through the other")


def connected(plane: Plane) -> list[bool]:
    answer: Any = plane.admin.ListSidecars(admin_pb2.ListSidecarsRequest(), timeout=10)
    return [sidecar.connected for sidecar in answer.sidecars]


def test_what_falls_due_is_done_once_by_all(planes: tuple[Plane, Plane]) -> None:
    one, other = planes
    one.put(world.subject("alice"))
    for number in range(10):
        grant = world.resource(f"grants/due-{number}", RECORDS["grants/g1"])
        grant.grant.expire_time.GetCurrentTime()
        grant.grant.expire_time.seconds += 2
        one.put(grant)
    before = one.heads(TENANT)[TENANT, 1][1]

    def states(plane: Plane) -> set[int]:
        request = admin_pb2.ListResourcesRequest(
            parent=f"tenants/{TENANT}", collection=resources_pb2.COLLECTION_GRANTS, page_size=100
        )
        return {resource.grant.state for resource in plane.admin.ListResources(request, timeout=10).resources}

    until(lambda: states(other) == {resources_pb2.GRANT_STATE_EXPIRED}, "the grants to expire")
    assert one.heads(TENANT)[TENANT, 1][1] == before + 10


def test_a_replica_refuses_a_database_that_was_not_migrated(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.create(empty=True)
    settings = {
        "SIDESTEP_CP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_CP_HTTP_LISTEN": "127.0.0.1:0",
        "SIDESTEP_CP_DATABASE_URL": url,
        "TMPDIR": str(tmp_path),
    }
    log = tmp_path / "log"

    def run(*arguments: str, **more: str) -> Program:

        return Program([str(Path(sys.executable).with_name("sidestep-controlplane")), *arguments], settings | more, log)

    refused = run()
    try:
        assert refused.process.wait(30) == 1
        assert "run `sidestep-controlplane migrate` first" in refused.errors()
        automatic = run(SIDESTEP_CP_MIGRATE="auto")
        try:
            automatic.wait_until_ready()
        finally:
            automatic.end()
    finally:
        refused.end()
        postgres.drop(url)


@pytest.mark.e2e
def test_a_postgresql_that_was_set_back_is_a_new_epoch_that_sidecars_follow(
    planes: tuple[Plane, Plane], postgres: Postgres, tmp_path: Path
) -> None:
    one, other = planes
    url = one.settings["SIDESTEP_CP_DATABASE_URL"]
    for resource in world.resources():
        one.put(resource)
    one.put(world.resource("grants/g1", GRANT))
    with Pod(tmp_path / "pod" / "data", one.address) as pod, Client(pod.address) as client:
        until(lambda: client.evaluate(**question(1)).basis is Basis.EXEMPTION_GRANT, "the grant")
        postgres.dump(url, tmp_path / "dump")
        one.put(world.resource("grants/g1", REVOKED))
        until(lambda: client.evaluate(**question(1)).outcome is Outcome.STEP_UP, "the revocation")
        before = other.heads(TENANT)[TENANT, 1]
        one.kill()
        other.kill()
        postgres.restore(url, tmp_path / "dump")
        raised = command(url, "raise-epoch")
        assert "WARNING: everything written after the backup was made is undone" in raised.stdout
        one.start()
        other.start()
        after = other.heads(TENANT)[TENANT, 1]
        assert (after[0] > before[0], after[1] < before[1]) == (True, True)
        until(lambda: client.evaluate(**question(1)).basis is Basis.EXEMPTION_GRANT, "the restored data")
        other.put(world.resource("grants/g1", REVOKED))
        until(lambda: client.evaluate(**question(1)).outcome is Outcome.STEP_UP, "the revocation again")


def test_while_postgresql_is_gone_nothing_is_confirmed_and_afterwards_all_goes_on(
    planes: tuple[Plane, Plane], postgres: Postgres, tmp_path: Path
) -> None:
    one, other = planes
    for resource in world.resources():
        one.put(resource)
    one.put(world.resource("grants/g1", GRANT))
    pod_settings = {"SIDESTEP_SOFT_STALE": "4s"}
    with Pod(tmp_path / "pod" / "data", other.address, **pod_settings) as pod, Client(pod.address) as client:

        def basis() -> Basis:
            return client.evaluate(**question(1)).basis

        until(lambda: basis() is Basis.EXEMPTION_GRANT, "the grant")
        postgres.stop()
        try:
            request = admin_pb2.GetRevisionsRequest(parent=f"tenants/{TENANT}")
            with pytest.raises(grpc.RpcError) as error:
                one.admin.GetRevisions(request, timeout=20)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            # The stream is open, and still the data ages: no exemption by what may be outdated.
            until(lambda: basis() is not Basis.EXEMPTION_GRANT, "the data to grow stale")
        finally:
            postgres.start()
        until(lambda: basis() is Basis.EXEMPTION_GRANT, "the data to be confirmed again")
        one.put(world.resource("grants/g1", REVOKED))
        until(lambda: client.evaluate(**question(1)).outcome is Outcome.STEP_UP, "the revocation")
