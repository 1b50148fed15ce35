"""The life of a grant: every transition from every state, and every rule that refuses one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.lifecycle import Life, Refused, State, Step, Transition, TransitionRefusedError, counted, due, due_at, step

NOW = 1_000_000.0
DAY = 86_400.0
S, T = State, Transition

# What becomes of a grant, with everything else in order; what is not here is refused as WRONG_STATE.
TABLE: dict[tuple[State | None, Transition], State] = {
    (None, T.REQUEST): S.REQUESTED,
    (S.REQUESTED, T.REQUEST): S.REQUESTED,
    (S.REJECTED, T.REQUEST): S.REQUESTED,
    (S.EXPIRED, T.REQUEST): S.REQUESTED,
    (S.LAPSED, T.REQUEST): S.REQUESTED,
    (S.APPROVED, T.REQUEST): S.REQUESTED,
    (S.ACTIVE, T.REQUEST): S.REQUESTED,
    (S.SUSPENDED, T.REQUEST): S.REQUESTED,
    (S.REQUESTED, T.APPROVE): S.APPROVED,
    (S.REQUESTED, T.REJECT): S.REJECTED,
    (S.APPROVED, T.REJECT): S.REJECTED,
    (S.APPROVED, T.ACTIVATE): S.ACTIVE,
    (S.ACTIVE, T.SUSPEND): S.SUSPENDED,
    (S.SUSPENDED, T.RESUME): S.ACTIVE,
    (S.REQUESTED, T.REVOKE): S.REVOKED,
    (S.APPROVED, T.REVOKE): S.REVOKED,
    (S.ACTIVE, T.REVOKE): S.REVOKED,
    (S.SUSPENDED, T.REVOKE): S.REVOKED,
    (S.LAPSED, T.REVOKE): S.REVOKED,
    (S.EXPIRED, T.REVOKE): S.REVOKED,
    (S.REQUESTED, T.EXPIRE): S.EXPIRED,
    (S.APPROVED, T.EXPIRE): S.EXPIRED,
    (S.ACTIVE, T.EXPIRE): S.EXPIRED,
    (S.SUSPENDED, T.EXPIRE): S.EXPIRED,
    (S.ACTIVE, T.LAPSE): S.LAPSED,
    (S.SUSPENDED, T.LAPSE): S.LAPSED,
    (S.ACTIVE, T.RENEW): S.ACTIVE,
    (S.SUSPENDED, T.RENEW): S.SUSPENDED,
    (S.LAPSED, T.RENEW): S.ACTIVE,
}


def life(state: State | None = S.ACTIVE, **changes: Any) -> Life:
    """A grant that alice requested; approved by bob if it is that far."""
    approved = () if state in (None, S.REQUESTED, S.REJECTED) else (("bob", NOW - DAY),)
    fields: dict[str, Any] = {"end_at": NOW + DAY, "requester": "alice", "approvals": approved, "review_at": NOW + 60}
    return Life(state, **(fields | changes))


def take(before: Life, transition: Transition, actor: str = "bob", now: float = NOW, **rules: Any) -> Life:
    return step(before, Step(transition, actor, "because"), now, **({"approvals": 1, "review_every_s": DAY} | rules))


def refused(before: Life, transition: Transition, actor: str = "bob", **rules: Any) -> Refused:
    with pytest.raises(TransitionRefusedError) as caught:
        take(before, transition, actor, **rules)
    assert str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("transition", list(Transition), ids=str)
@pytest.mark.parametrize("state", [None, *State], ids=str)
def test_every_transition_from_every_state(state: State | None, transition: Transition) -> None:
    changes: dict[str, Any] = {}
    if transition is T.EXPIRE:
        changes = {"end_at": NOW}
    if transition is T.LAPSE:
        changes = {"review_at": NOW}
    before = life(state, **changes)
    if (state, transition) in TABLE:
        assert take(before, transition).state is TABLE[state, transition]
    else:
        assert refused(before, transition) is Refused.WRONG_STATE


def test_a_grant_of_a_class_without_approvals_is_approved_by_being_requested() -> None:
    after = take(life(None), T.REQUEST, "carol", approvals=0)
    assert (after.state, after.requester, after.approvals) == (S.APPROVED, "carol", ())


def test_a_new_request_begins_without_approvals() -> None:
    after = take(life(S.EXPIRED, end_at=NOW + DAY), T.REQUEST, "carol")
    assert (after.state, after.requester, after.approvals) == (S.REQUESTED, "carol", ())


@pytest.mark.parametrize("actor", ["alice", "Alice", "ALICE"])
def test_the_requester_may_not_approve(actor: str) -> None:
    assert refused(life(S.REQUESTED), T.APPROVE, actor) is Refused.SELF_APPROVAL


def test_nobody_may_not_approve() -> None:
    assert refused(life(S.REQUESTED), T.APPROVE, "") is Refused.NOBODY


@pytest.mark.parametrize("actor", ["bob", "BOB"])
def test_one_person_approves_once(actor: str) -> None:
    once = take(life(S.REQUESTED), T.APPROVE, "bob", approvals=2)
    assert once.state is S.REQUESTED
    assert refused(once, T.APPROVE, actor, approvals=2) is Refused.APPROVED_BEFORE
    assert take(once, T.APPROVE, "carol", approvals=2).state is S.APPROVED


def test_an_approved_grant_takes_no_more_approvals_than_it_needs() -> None:
    assert refused(life(S.APPROVED), T.APPROVE, "carol") is Refused.WRONG_STATE


def test_a_class_that_wants_more_people_later_asks_for_them_before_activation() -> None:
    approved = life(S.APPROVED)
    assert refused(approved, T.ACTIVATE, approvals=2) is Refused.APPROVALS_MISSING
    again = take(approved, T.APPROVE, "carol", approvals=2)
    assert take(again, T.ACTIVATE, approvals=2).state is S.ACTIVE


def test_a_suspended_grant_resumes_only_with_the_approvals_of_its_class() -> None:
    assert refused(life(S.SUSPENDED), T.RESUME, approvals=2) is Refused.APPROVALS_MISSING


def test_an_approval_of_the_requester_in_the_record_counts_for_nothing() -> None:
    assert refused(life(S.APPROVED, approvals=(("Alice", NOW),)), T.ACTIVATE) is Refused.APPROVALS_MISSING


@pytest.mark.parametrize(
    ("state", "transition"),
    [
        (None, T.REQUEST),
        (S.REQUESTED, T.APPROVE),
        (S.APPROVED, T.ACTIVATE),
        (S.SUSPENDED, T.RESUME),
        (S.ACTIVE, T.RENEW),
        (S.LAPSED, T.RENEW),
    ],
    ids=str,
)
def test_after_its_end_nothing_brings_a_grant_into_force(state: State | None, transition: Transition) -> None:
    assert refused(life(state, end_at=NOW), transition) is Refused.ENDED
    assert take(life(state, end_at=NOW + 1), transition).state is TABLE[state, transition]


@pytest.mark.parametrize(("state", "transition"), [(S.APPROVED, T.ACTIVATE), (S.SUSPENDED, T.RESUME)], ids=str)
def test_an_overdue_review_comes_before_activation(state: State, transition: Transition) -> None:
    assert refused(life(state, review_at=NOW), transition) is Refused.REVIEW_OVERDUE


def test_activation_sets_the_first_review() -> None:
    assert take(life(S.APPROVED, review_at=None), T.ACTIVATE).review_at == NOW + DAY
    assert take(life(S.APPROVED, review_at=None), T.ACTIVATE, review_every_s=None).review_at is None


@pytest.mark.parametrize("transition", [T.REJECT, T.SUSPEND, T.REVOKE], ids=str)
def test_what_takes_something_away_needs_a_reason(transition: Transition) -> None:
    state = S.REQUESTED if transition is T.REJECT else S.ACTIVE
    with pytest.raises(TransitionRefusedError) as caught:
        step(life(state), Step(transition, "bob"), NOW)
    assert caught.value.code is Refused.REASON_MISSING


def test_nothing_expires_or_lapses_before_its_time() -> None:
    assert refused(life(end_at=NOW + 1), T.EXPIRE) is Refused.NOT_DUE
    assert refused(life(review_at=NOW + 1), T.LAPSE) is Refused.NOT_DUE
    assert refused(life(review_at=None), T.LAPSE) is Refused.NOT_DUE


def test_a_review_is_by_a_second_person_where_approval_is() -> None:
    assert refused(life(), T.RENEW, "ALICE") is Refused.SELF_APPROVAL
    assert refused(life(), T.RENEW, "") is Refused.NOBODY
    assert take(life(), T.RENEW, "bob").review_at == NOW + DAY
    assert take(life(), T.RENEW, "alice", approvals=0).review_at == NOW + DAY


def test_a_renewal_does_not_stand_in_for_missing_approvals() -> None:
    assert refused(life(S.LAPSED), T.RENEW, "carol", approvals=2) is Refused.APPROVALS_MISSING


def renewed(review_at: float | None, review_every_s: float | None) -> Life:
    return step(life(), Step(T.RENEW, "bob", review_at=review_at), NOW, approvals=1, review_every_s=review_every_s)


def test_a_stated_review_is_in_the_future_and_within_the_class() -> None:
    assert renewed(NOW + 5, DAY).review_at == NOW + 5
    assert renewed(NOW + DAY, DAY).review_at == NOW + DAY
    assert renewed(NOW + 9 * DAY, None).review_at == NOW + 9 * DAY
    for review_at, every, code in (
        (NOW + DAY + 1, DAY, Refused.REVIEW_TOO_LATE),
        (NOW, DAY, Refused.REVIEW_OVERDUE),
        (None, None, Refused.NO_REVIEW),
    ):
        with pytest.raises(TransitionRefusedError) as caught:
            renewed(review_at, every)
        assert caught.value.code is code


def test_an_ended_grant_expires_even_if_its_review_is_overdue_too() -> None:
    assert due(life(end_at=NOW, review_at=NOW), NOW) is T.EXPIRE
    assert due(life(review_at=NOW), NOW) is T.LAPSE
    assert due(life(S.APPROVED, review_at=NOW), NOW) is None
    assert due(life(review_at=NOW + 1), NOW) is None


def test_the_people_who_count_are_distinct_and_not_the_requester() -> None:
    assert counted("alice", ["bob", "Bob", "alice", "ALICE", "", "carol", "anonymous"]) == 2


def test_nobody_approves_what_nobody_knows_who_requested() -> None:
    # It may have been any of them.
    assert counted("", ["bob"]) == counted("Anonymous", ["bob", "carol"]) == 0


LIVES = st.builds(
    Life,
    st.sampled_from([None, *State]),
    st.sampled_from([NOW - 1, NOW, NOW + 1, NOW + DAY]),
    st.sampled_from(["", "alice", "bob"]),
    st.lists(st.tuples(st.sampled_from(["alice", "bob", "carol", "BOB"]), st.just(NOW)), max_size=3).map(tuple),
    st.sampled_from([None, NOW - 1, NOW, NOW + 1]),
)
STEPS = st.builds(
    Step,
    st.sampled_from(list(Transition)),
    st.sampled_from(["", "alice", "bob", "carol", "dave"]),
    st.sampled_from(["", "because"]),
    st.sampled_from([None, NOW + 5, NOW - 5]),
)


@given(LIVES, st.lists(STEPS, max_size=8), st.integers(0, 3))
def test_no_path_leads_into_force_without_the_approvals_or_out_of_revocation(
    start: Life, steps: list[Step], wanted: int
) -> None:
    at = start
    for taken in steps:
        try:
            after = step(at, taken, NOW, approvals=wanted, review_every_s=DAY)
        except TransitionRefusedError:
            continue
        assert at.state is not S.REVOKED
        if after.state is S.ACTIVE and at.state is not S.ACTIVE:
            assert counted(after.requester, (name for name, _ in after.approvals)) >= wanted
            assert after.end_at > NOW
            assert after.review_at is None or after.review_at > NOW
        at = after


@given(LIVES)
def test_what_is_due_can_be_done_and_leaves_nothing_due(start: Life) -> None:
    transition = due(start, NOW)
    at = due_at(start)
    assert (transition is not None) is (at is not None and at <= NOW)
    if transition is not None:
        after = step(start, Step(transition, "controlplane", "it is time"), NOW)
        assert due(after, NOW) is None
