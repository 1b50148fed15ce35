"""Two stores over one database, as two replicas have it: they share no lock in memory, and write at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from sidestep.v1 import audit_pb2, report_pb2, usage_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.actor import system
from controlplane.audit import Note, link
from controlplane.errors import ChangedError, ConflictError, RefusedError
from controlplane.store import Store, Write
from engine.books import Settled, Settling
from engine.digest import Digest
from engine.errors import InvalidInputError
from engine.escrow import Account, Ask, Message, Room, Standing
from engine.names import Collection, Lane

GRANTS, KEYS, SUBJECTS, DEVICES = Collection.GRANTS, Collection.KEYS, Collection.SUBJECTS, Collection.DEVICES
NOTE = Note(system(), "put", "tenants/acme/grants/g")

Run = Callable[[Callable[[Store, Store], Awaitable[Any]]], Any]


@pytest.fixture
def run(url: str) -> Run:
    """Runs a scenario against two stores over one database."""

    def run(scenario: Callable[[Store, Store], Awaitable[Any]]) -> Any:
        async def body() -> Any:
            one, other = await Store.open(url), await Store.open(url)
            try:
                return await scenario(one, other)
            finally:
                await one.close()
                await other.close()

        return asyncio.run(body())

    return run


async def check_lane(store: Store, lane: Lane) -> int:
    """Revisions without gaps, deltas that chain, a digest that is that of the records. Returns the revision."""
    async with store.read_lane("acme", lane) as (head, batches):
        digest = Digest(head.digest_key)
        async for batch in batches:
            for record in batch:
                digest.add(*record)
    assert digest.value() == head.digest
    entries = await store.changes("acme", lane, 0, limit=1_000)
    assert [entry.revision for entry in entries] == list(range(1, head.revision + 1))
    return head.revision


def grant(**budget: Any) -> bytes:
    record = pb.Grant(name="tenants/acme/grants/g", state=pb.GRANT_STATE_ACTIVE, budget=pb.Budget(**budget))
    record.expire_time.FromSeconds(int(time.time()) + 3_600)
    return record.SerializeToString()


def test_of_two_that_expect_a_record_to_be_absent_one_writes_it(run: Run) -> None:
    async def create(store: Store, number: int, value: bytes) -> bool:
        try:
            await store.commit("acme", [Write(GRANTS, f"g{number}", value)], expect={(GRANTS, f"g{number}"): None})
        except ConflictError:
            return False
        return True

    async def scenario(one: Store, other: Store) -> None:
        wins = await asyncio.gather(
            *(create(store, number, name) for number in range(25) for store, name in ((one, b"1"), (other, b"2")))
        )
        assert [sum(wins[at : at + 2]) for at in range(0, 50, 2)] == [1] * 25
        assert await check_lane(one, Lane.URGENT) == 25

    run(scenario)


def test_new_records_written_by_both_at_once_leave_the_digest_true(run: Run) -> None:
    async def scenario(one: Store, other: Store) -> None:
        await asyncio.gather(
            *(
                store.commit("acme", [Write(kind, f"r{n // 2}", name), Write(kind, f"s{n}", name)])
                for n in range(30)
                for kind in (SUBJECTS, DEVICES)
                for store, name in ((one, b"1"), (other, b"2"))
            )
        )
        for lane in Lane:
            assert await check_lane(other, lane) == 60

    run(scenario)


def test_an_expectation_of_the_other_lane_cannot_be_undercut(run: Run) -> None:
    async def create(store: Store, mine: Collection, other: Collection, record_id: str) -> bool:
        try:
            await store.commit("acme", [Write(mine, record_id, b"x")], expect={(other, record_id): None})
        except ConflictError:
            return False
        return True

    async def scenario(one: Store, other: Store) -> None:
        for number in range(20):
            both = await asyncio.gather(
                create(one, SUBJECTS, DEVICES, f"r{number}"), create(other, DEVICES, SUBJECTS, f"r{number}")
            )
            assert sum(both) == 1

    run(scenario)


def test_a_whole_collection_can_be_expected(run: Run) -> None:
    async def add(store: Store, key_id: str) -> bool:
        seen = {(int(KEYS), found): value for found, value in await store.list("acme", KEYS)}
        if len(seen) >= 3:
            return False
        expect: dict[tuple[int, str], bytes | None] = {**seen, (int(KEYS), key_id): None}
        try:
            await store.commit("acme", [Write(KEYS, key_id, b"k")], expect=expect, whole={KEYS})
        except ConflictError:
            return False
        return True

    async def scenario(one: Store, other: Store) -> None:
        for number in range(12):
            await asyncio.gather(add(one, f"a{number}"), add(other, f"b{number}"))
        assert await one.count("acme", KEYS) == 3

    run(scenario)


def test_the_audit_log_is_one_chain_from_its_first_entry_on(run: Run) -> None:
    async def write(store: Store, name: str) -> None:
        for number in range(15):
            await store.commit("acme", [Write(SUBJECTS, f"{name}{number}", b"x")], audit=NOTE)
            await store.commit("acme", [Write(DEVICES, f"{name}{number}", b"x")], audit=NOTE)
            proposal = audit_pb2.Proposal(name=f"{name}{number}")
            proposal.expire_time.FromSeconds(int(time.time()) + 600)
            await store.proposals.add("acme", f"{name}{number}", proposal, NOTE)

    async def scenario(one: Store, other: Store) -> None:
        await asyncio.gather(write(one, "a"), write(other, "b"), write(one, "c"))
        records = await one.audit.read("acme", 0, 1_000)
        assert [number for number, _ in records] == list(range(1, 136))
        for (_, before), (_, after) in pairwise(records):
            assert after.previous_hash == before.hash == link(before.previous_hash, before.entry)
        head, newest = await one.audit.extent("acme")
        assert head.number == newest == 135
        numbers = [number for number, _ in await other.proposals.list("acme", 0, 100, time.time(), pending_only=True)]
        assert numbers == list(range(45, 0, -1))

    run(scenario)


def test_a_proposal_ends_once(run: Run) -> None:
    async def close(store: Store) -> bool:
        try:
            await store.proposals.close("acme", "p", audit_pb2.Proposal(name="p"), NOTE)
        except RefusedError:
            return False
        return True

    async def approve(store: Store, value: bytes) -> bool:
        also = store.proposals.closing("acme", "p", lambda _: audit_pb2.Proposal(name="p"))
        try:
            await store.commit("acme", [Write(SUBJECTS, "s", value)], audit=NOTE, also=also)
        except RefusedError:
            return False
        return True

    async def scenario(one: Store, other: Store) -> None:
        proposal = audit_pb2.Proposal(name="p")
        proposal.expire_time.FromSeconds(int(time.time()) + 600)
        await one.proposals.add("acme", "p", proposal, NOTE)
        ends = await asyncio.gather(
            close(one), close(other), approve(one, b"1"), approve(other, b"2"), approve(other, b"3")
        )
        assert sum(ends) == 1
        assert await one.count("acme", SUBJECTS) == any(ends[2:])

    run(scenario)


def test_a_budget_is_never_exceeded(run: Run) -> None:
    async def lease(store: Store, holder: int) -> int:
        account = Account("acme", "g", "ada")
        granted = 0
        for sequence in range(1, 4):
            asks = (Ask(account, Room(1), Room(4)),)
            answer = await store.budgets.lease("acme", "pod", Message(f"{holder:032x}", sequence, (), asks))
            granted = answer.slices[0].granted.uses
        return granted

    async def scenario(one: Store, other: Store) -> None:
        await one.commit("acme", [Write(GRANTS, "g", grant(max_count=50))])
        granted = await asyncio.gather(*(lease((one, other)[n % 2], n) for n in range(24)))
        assert sum(granted) <= 50
        ((_, _, totals),) = await other.budgets.totals("acme", "g")
        assert totals.taken.uses == sum(granted)
        # Nothing is left but what the shares of so many holders do not come to.
        answer = await one.budgets.lease(
            "acme", "pod", Message("f" * 32, 1, (), (Ask(Account("acme", "g", "ada"), Room(51), Room(51)),))
        )
        assert answer.slices[0].exhausted

    run(scenario)


def test_a_period_begins_once(run: Run) -> None:
    async def scenario(one: Store, other: Store) -> None:
        for at in (100.0, 200.0, 300.0):
            both = await asyncio.gather(
                *(s.budgets.begin_period("acme", "ada", at) for s in (one, other) for _ in "ab")
            )
            assert len(set(both)) == 1
        assert (await one.budgets.periods("acme", ["ada"]))["ada"] == (4, 300.0)

    run(scenario)


def test_a_settlement_counts_once_also_long_after(run: Run) -> None:
    account = Account("acme", "g", "ada")
    cancelled = Settling("d1", False, "a" * 32, account, 1, Room(1))

    async def scenario(one: Store, other: Store) -> None:
        await one.commit("acme", [Write(GRANTS, "g", grant(max_count=5))])
        await one.budgets.lease("acme", "pod", Message("a" * 32, 1, (), (Ask(account, Room(2), Room(2)),)))
        await one.budgets.lease(
            "acme", "pod", Message("a" * 32, 2, (Standing(account, 1, Room(2), Room(2), Room(0)),), ())
        )
        await asyncio.gather(*(store.budgets.settle("acme", [cancelled]) for store in (one, other, one, other)))
        # The period still runs, so the settlement is kept however old it is.
        await one.budgets.forget(time.time() + 1_000)
        assert await other.budgets.settle("acme", [cancelled]) == [Settled.SETTLED]
        ((_, _, totals),) = await one.budgets.totals("acme", "g")
        assert totals.cancelled == Room(1)
        # When it is over, both are forgotten.
        await one.budgets.begin_period("acme", "ada", 100.0)
        assert await one.budgets.forget(time.time() + 1_000) == 1
        assert await one.budgets.totals("acme", "g") == []

    run(scenario)


def test_a_proof_is_of_one_report(run: Run) -> None:
    async def scenario(one: Store, other: Store) -> None:
        for number in range(10):
            claims = await asyncio.gather(
                *(
                    store.proofs.claim("acme", "https://idp", f"j{number}", digest, 2_000.0)
                    for digest in (b"1", b"2")
                    for store in (one, other)
                )
            )
            assert claims in ([True, True, False, False], [False, False, True, True])
        assert await one.proofs.forget(3_000.0) == 10

    run(scenario)


def test_usage_adds_up_and_a_window_counts_once(run: Run) -> None:
    def window(chain: str, number: int) -> report_pb2.UsageWindow:
        made = report_pb2.UsageWindow(chain=chain, number=number)
        made.end_time.FromSeconds(7_200)
        for tenant in ("acme", "globex"):
            made.tenants.add(tenant=tenant, decisions={"ALLOW": 1, "DENY": 2})
        return made

    async def scenario(one: Store, other: Store) -> None:
        await asyncio.gather(
            *(
                store.usage.take(f"pod-{pod}", [window("w0", number)], [])
                for number in range(1, 6)
                for pod in range(4)
                for store in (one, other)
            )
        )
        for tenant in ("acme", "globex"):
            counts = await one.usage.counts(tenant, 0)
            # A window that a later one overtook is not taken, so there may be fewer; each counts once in any case.
            assert 4 <= counts["decision", "ALLOW"] <= 20
            assert counts["decision", "DENY"] == 2 * counts["decision", "ALLOW"]
        for number in range(6, 10):
            await asyncio.gather(*(store.usage.take("pod-0", [window("w1", number)], []) for store in (one, other)))
        assert (await one.usage.counts("acme", 0))["decision", "ALLOW"] == counts["decision", "ALLOW"] + 4

    run(scenario)


def test_a_journal_reported_to_both_keeps_the_greatest(run: Run) -> None:
    def chain(records: int) -> report_pb2.JournalChain:
        made = report_pb2.JournalChain(chain="w0-0192f3c4a1b2", records=records, head=bytes([records]) * 32)
        made.report_time.FromSeconds(1_000 + records)
        return made

    async def scenario(one: Store, other: Store) -> None:
        await asyncio.gather(*((one, other)[n % 2].journals.report(f"pod-{n % 3}", [chain(n + 1)]) for n in range(60)))
        found = await one.journals.read("", ("", ""), 10)
        assert [status.chain.records for status in found] == [58, 59, 60]
        assert await other.journals.forget(time.time() + 10) == 3

    run(scenario)


def test_a_finding_a_person_settled_is_not_opened_again_by_who_read_it_before(run: Run) -> None:
    async def scenario(one: Store, other: Store) -> None:
        opened = usage_pb2.FleetFinding(name="f", state=usage_pb2.FINDING_STATE_OPEN)
        await one.findings.put("acme", "f", opened, None)
        with pytest.raises(ChangedError):
            await other.findings.put("acme", "f", opened, None)
        settled = usage_pb2.FleetFinding(name="f", state=usage_pb2.FINDING_STATE_DISMISSED)
        await other.findings.put("acme", "f", settled, opened)
        with pytest.raises(ChangedError):
            await one.findings.put("acme", "f", opened, opened)
        assert await one.findings.get("acme", "f") == settled

    run(scenario)


def test_a_sidecar_that_went_to_the_other_replica_is_shown_as_connected_there(run: Run) -> None:
    def status(*, connected: bool, seen_s: float) -> Any:
        from sidestep.v1 import admin_pb2

        made = admin_pb2.SidecarStatus(sidecar="pod-1", connected=connected)
        made.seen_time.FromNanoseconds(int(seen_s * 1e9))
        return made

    async def scenario(one: Store, other: Store) -> None:
        now = time.time()
        one.record_sidecar(status(connected=True, seen_s=now))
        await one.flush_sidecars()
        other.record_sidecar(status(connected=True, seen_s=now + 2))
        await other.flush_sidecars()
        # The first notices only now.
        one.record_sidecar(status(connected=False, seen_s=now + 1))
        assert [each.connected for each in await one.sidecars()] == [True]
        await one.flush_sidecars()
        for store in (one, other):
            assert [each.connected for each in await store.sidecars()] == [True]
            assert await store.connected_sidecars(["pod-1", "pod-2"]) == {"pod-1"}

    run(scenario)


def test_what_no_database_can_keep_is_refused_alike(run: Run) -> None:
    async def scenario(one: Store, _other: Store) -> None:
        for bad in ("a\0b", "a\ud800b"):
            with pytest.raises(InvalidInputError):
                await one.commit("acme", [Write(GRANTS, bad, b"x")])
            with pytest.raises(InvalidInputError):
                await one.journals.report(bad, [report_pb2.JournalChain(chain="w0", records=1)])
        with pytest.raises(InvalidInputError):
            await one.journals.report("pod-1", [report_pb2.JournalChain(chain="w0", records=2**63)])
        check = report_pb2.SpotCheck(tenant="acme", sample=b"s", grant="g", rate=float("nan"))
        with pytest.raises(InvalidInputError):
            await one.usage.take("pod-1", [], [check])
        # Bytes are bytes.
        await one.commit("acme", [Write(GRANTS, "g", b"\0\xff")])
        assert await one.get("acme", GRANTS, "g") == b"\0\xff"
        assert await one.journals.read("", ("", ""), 10) == []

    run(scenario)


def test_a_raised_epoch_is_greater_and_keeps_what_is_there(run: Run) -> None:
    async def scenario(one: Store, other: Store) -> None:
        await one.commit("acme", [Write(Collection.POLICIES, "p", b"one")])
        begun = int(time.time())
        commits = (other.commit("acme", [Write(GRANTS, f"g{n}", b"x")]) for n in range(20))
        (before, after), *committed = await asyncio.gather(one.raise_epoch(), *commits)
        assert before == 1
        assert after >= begun
        # Each commit is of one epoch, and those of the later one come after those of the former.
        epochs = {head.revision: head.epoch for each in committed for head in each.heads.values() if head.lane == 1}
        assert [epochs[revision] for revision in sorted(epochs)] == sorted(epochs.values())
        assert {head.epoch for head in await other.heads()} == {after}
        assert await one.raise_epoch() == (after, after + 1) or (await one.heads())[0].epoch > after
        assert (await other.raise_epoch(at_least=2**40))[1] == 2**40
        # What both epochs have in common is known of the former still.
        assert (await one.rules("acme", 1, 1)).records == [(Collection.POLICIES, "p", b"one")]

    run(scenario)


def test_after_an_epoch_was_raised_nothing_is_granted_but_of_new_periods(run: Run) -> None:
    account = Account("acme", "g", "ada")

    async def ask(store: Store, holder: str, sequence: int) -> Any:
        message = Message(holder * 32, sequence, (), (Ask(account, Room(1), Room(1)),))
        return (await store.budgets.lease("acme", "pod", message)).slices[0]

    async def scenario(one: Store, other: Store) -> None:
        await one.commit("acme", [Write(GRANTS, "g", grant(max_count=5))])
        authenticated = time.time() - 5
        await one.budgets.begin_period("acme", "ada", authenticated)
        assert (await ask(one, "a", 1)).granted == Room(1)
        _, epoch = await other.raise_epoch()
        found = await ask(one, "a", 2)
        assert (found.granted, found.exhausted) == (Room(1), True)
        # Nor of a subject the books know nothing of: they may have been set back to before it had anything.
        # What began the former period, or may have, begins none.
        await one.budgets.begin_period("acme", "ada", authenticated + 1)
        assert (await ask(one, "b", 1)).exhausted
        period = await one.budgets.begin_period("acme", "ada", time.time() + 1)
        assert period.number >= epoch
        assert (await ask(one, "b", 2)).granted == Room(1)

    run(scenario)
