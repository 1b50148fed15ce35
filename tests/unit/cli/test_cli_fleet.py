"""`sidestep sidecar list` and `sidestep rollout wait`, against a server whose fleet is written down."""

from __future__ import annotations

import threading
import time
from typing import Any

from sidestep.v1 import admin_pb2 as api
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.failures import NOT_EVERYONE, REFUSING
from controlplane.store import Store
from tests.fakes.admin import AdminServer
from tests.unit.cli.conftest import Sidestep


def status_of(server: AdminServer, name: str, revision: int, *, connected: bool = True, seen_s: float = 0.0) -> Any:
    """A sidecar that has acknowledged a revision of acme's urgent lane."""
    head = server.stub.GetRevisions(api.GetRevisionsRequest(parent="tenants/acme")).heads[0]
    status = api.SidecarStatus(sidecar=name, instance="i", version="0.1.0", connected=connected)
    status.cursors.add(tenant="acme", lane=pb.LANE_URGENT, epoch=head.epoch, revision=revision)
    status.seen_time.FromNanoseconds(int((time.time() - seen_s) * 1e9))
    return status


def record(server: AdminServer, *statuses: Any) -> None:
    async def seen() -> None:
        for status in statuses:
            server.store.record_sidecar(status)

    server.run(seen())


def refuse(status: Any) -> Any:
    status.refusal = "tenants/acme urgent revision 3: policy_rejected: no"
    status.refusals.add(tenant="acme", lane=pb.LANE_URGENT, revision=3, code="policy_rejected", detail="no")
    return status


def three_revisions(sidestep: Sidestep) -> None:
    for subject in ("alice", "bob", "carol"):
        sidestep("subject", "put", subject)


def test_the_list_tells_how_far_each_is_behind_and_what_it_refuses(sidestep: Sidestep, server: AdminServer) -> None:
    three_revisions(sidestep)
    slow = status_of(server, "slow", 1)
    slow.clock_offset_ms = -31_500
    gone = status_of(server, "gone", 3, connected=False)
    record(server, status_of(server, "current", 3), slow, gone, refuse(status_of(server, "stubborn", 2)))
    found = {each["sidecar"]: each for each in sidestep.json("sidecar", "list")}
    assert found.keys() == {"current", "gone", "slow", "stubborn"}
    assert found["current"]["lags"] == []
    (lag,) = found["slow"]["lags"]
    assert (lag["tenant"], lag["lane"], lag["revisions"]) == ("acme", "LANE_URGENT", "2")
    assert 0 <= float(lag["age"].removesuffix("s")) < 600
    assert found["slow"]["clockOffsetMs"] == "-31500"
    assert found["stubborn"]["refusals"][0]["code"] == "policy_rejected"

    def names(*filters: str) -> list[str]:
        return [each["sidecar"] for each in sidestep.json("sidecar", "list", *filters)]

    assert names("--behind") == ["slow", "stubborn"]
    assert names("--refusing") == ["stubborn"]
    assert names("--disconnected") == ["gone"]
    assert names("--behind", "--refusing") == ["stubborn"]
    assert names("--behind", "--disconnected") == []
    (row,) = [line for line in sidestep("sidecar", "list").splitlines() if line.startswith("slow")]
    assert "acme/urgent=-2(" in row
    assert "-31.5s" in row


def test_filters_reach_over_pages(server: AdminServer, sidestep: Sidestep) -> None:
    three_revisions(sidestep)
    fleet = [status_of(server, f"pod-{number:02d}", 3 if number % 5 else 1) for number in range(20)]
    record(server, *fleet)
    names: list[str] = []
    request = api.ListSidecarsRequest(page_size=3, behind=True)
    while True:
        page = server.stub.ListSidecars(request)
        names += [each.sidecar for each in page.sidecars]
        if not page.next_page_token:
            break
        assert len(page.sidecars) == 3
        request.page_token = page.next_page_token
    assert names == ["pod-00", "pod-05", "pod-10", "pod-15"]


def test_a_lane_of_another_epoch_or_not_loaded_yet_is_behind_without_a_number(
    server: AdminServer, sidestep: Sidestep
) -> None:
    three_revisions(sidestep)
    loading = status_of(server, "loading", 0)
    loading.cursors[0].epoch = 0
    record(server, loading)
    (lag,) = sidestep.json("sidecar", "list")[0]["lags"]
    assert lag["revisions"] == "0"
    assert "age" not in lag
    assert "acme/urgent=loading" in sidestep("sidecar", "list")


def test_waiting_ends_when_the_last_one_has_it(server: AdminServer, sidestep: Sidestep) -> None:
    three_revisions(sidestep)
    record(server, status_of(server, "quick", 3), status_of(server, "slow", 2))
    late = threading.Timer(1.0, lambda: record(server, status_of(server, "slow", 3)))
    late.start()
    answer = sidestep.json("rollout", "wait", "--timeout", "60s")
    late.join()
    assert (answer["sidecars"], answer["current"], answer["missing"]) == (2, 2, [])
    assert [target["revision"] for target in answer["targets"]] == ["3"]
    assert "2 of 2 sidecars have acme/urgent=" in sidestep("rollout", "wait")


def test_what_is_written_meanwhile_moves_no_goal(server: AdminServer, sidestep: Sidestep) -> None:
    three_revisions(sidestep)
    record(server, status_of(server, "slow", 2))
    first = server.stub.GetRollout(api.GetRolloutRequest(parent="tenants/acme"))
    assert (first.sidecars, first.current) == (1, 0)
    sidestep("subject", "put", "dave")
    record(server, status_of(server, "slow", 3))
    again = server.stub.GetRollout(api.GetRolloutRequest(parent="tenants/acme", targets=first.targets))
    assert (again.current, again.targets[0].revision) == (1, 3)


def test_who_lacks_it_in_the_end_is_named_and_a_refusal_has_its_own_exit_code(
    server: AdminServer, sidestep: Sidestep
) -> None:
    three_revisions(sidestep)
    record(server, status_of(server, "quick", 3), status_of(server, "slow", 2))
    shown = sidestep("rollout", "wait", "--timeout", "1ms", code=NOT_EVERYONE, out=True)
    assert "1 of 2 sidecars have" in shown
    assert "slow" in shown
    assert "quick" not in shown
    assert sidestep("rollout", "wait", "--revision", "2")
    record(server, refuse(status_of(server, "slow", 2)))
    shown = sidestep("rollout", "wait", "--timeout", "1ms", code=REFUSING, out=True)
    assert "policy_rejected" in shown


def test_who_left_counts_for_a_while_and_others_tenants_not_at_all(server: AdminServer, sidestep: Sidestep) -> None:
    three_revisions(sidestep)
    gone = status_of(server, "gone", 2, connected=False, seen_s=90)
    foreign = status_of(server, "foreign", 0)
    foreign.cursors[0].tenant = "globex"
    record(server, status_of(server, "here", 3), gone, foreign)
    assert sidestep.json("rollout", "wait", "--tenant", "acme", "--timeout", "1ms")["sidecars"] == 1
    args = ("rollout", "wait", "--timeout", "1ms", "--seen-within", "5m")
    assert "gone" in sidestep(*args, code=NOT_EVERYONE, out=True)


def test_a_sidecar_of_another_replica_counts(server: AdminServer, sidestep: Sidestep) -> None:
    three_revisions(sidestep)
    elsewhere = status_of(server, "elsewhere", 2)

    async def other_replica() -> None:
        store = await Store.open(server._url)
        store.record_sidecar(elsewhere)
        await store.close()

    server.run(other_replica())
    assert "elsewhere" in sidestep("rollout", "wait", "--timeout", "1ms", code=NOT_EVERYONE, out=True)


def test_a_revision_that_was_not_committed_is_refused(server: AdminServer, sidestep: Sidestep) -> None:
    three_revisions(sidestep)
    assert "targets[0].revision: the newest is" in sidestep("rollout", "wait", "--revision", "4", code=1)
    assert "--revision" in sidestep("rollout", "wait", "--revision", "x", code=2)
    assert "--revision" in sidestep("rollout", "wait", "--revision", "0", code=2)
