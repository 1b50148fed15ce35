"""A holder's half of the escrow: totals only rise, and a late or repeated answer gives nothing twice."""

from __future__ import annotations

import pytest

from engine.escrow import Account, Answer, Ask, EscrowError, Holder, Room, Slice, Standing

ACCOUNT = Account("acme", "g", "ada")


def _slice(period: int, count: int, left: int = 10) -> Answer:
    return Answer((Slice(ACCOUNT, period, 100.0, Room(count), Room(left)),))


def test_nothing_is_left_of_an_account_never_heard_of() -> None:
    assert Holder("h").left(ACCOUNT) is None


def test_a_wish_is_repeated_until_an_answer_comes() -> None:
    holder = Holder("h")
    holder.ask(ACCOUNT, Room(1, 5), Room(1, 5))
    holder.ask(ACCOUNT, Room(1, 3), Room(4, 3))
    first, second = holder.message(), holder.message()
    assert first is not None
    assert first.asks == (Ask(ACCOUNT, Room(1, 5), Room(4, 5)),)
    assert second is not None
    assert (first.sequence, second.sequence) == (1, 2)
    holder.absorb(_slice(1, 4))
    assert holder.message() is None


def test_a_repeated_or_overtaken_answer_grants_nothing_twice() -> None:
    holder = Holder("h")
    for count in (2, 4, 2, 4):
        holder.absorb(_slice(1, count))
    holder.spend(ACCOUNT, 1, Room(1))
    found = holder.left(ACCOUNT)
    assert found is not None
    assert found.remaining == Room(3)


def test_what_is_spent_of_an_older_period_is_booked_to_it() -> None:
    holder = Holder("h")
    holder.absorb(_slice(1, 3))
    holder.absorb(_slice(2, 5))
    holder.spend(ACCOUNT, 1, Room(1))
    found = holder.left(ACCOUNT)
    assert found is not None
    assert (found.period, found.remaining) == (2, Room(5))
    message = holder.message()
    assert message is not None
    assert message.standings == (Standing(ACCOUNT, 1, Room(3), Room(1), Room(0)),)


def test_an_older_period_is_given_back_whole() -> None:
    holder = Holder("h")
    holder.absorb(_slice(1, 3))
    holder.absorb(_slice(2, 5))
    assert holder.give_back(ACCOUNT, keep=Room(2)) == Room(6)
    assert [standing.returned for standing in holder.standings()] == [Room(3), Room(3)]
    assert holder.give_back(ACCOUNT, keep=Room(2)) == Room(0)


def test_a_message_that_failed_is_said_again() -> None:
    holder = Holder("h")
    holder.absorb(_slice(1, 3))
    holder.spend(ACCOUNT, 1, Room(1))
    message = holder.message()
    assert message is not None
    assert holder.message() is None
    holder.failed(message)
    again = holder.message()
    assert again is not None
    assert again.standings == message.standings


def test_a_spend_without_record_is_taken_back() -> None:
    holder = Holder("h")
    holder.absorb(_slice(1, 1))
    holder.spend(ACCOUNT, 1, Room(1))
    holder.undo(ACCOUNT, 1, Room(1))
    found = holder.left(ACCOUNT)
    assert found is not None
    assert found.remaining == Room(1)


def test_a_spend_of_a_period_not_held_is_refused() -> None:
    holder = Holder("h")
    with pytest.raises(EscrowError, match="period 1 of grant g"):
        holder.spend(ACCOUNT, 1, Room(1))


def test_a_refused_account_has_nothing_left() -> None:
    holder = Holder("h")
    holder.absorb(Answer((Slice(ACCOUNT, 1, None, Room(), None, refused=True),)))
    found = holder.left(ACCOUNT)
    assert found is not None
    assert found.left == Room(0)
    holder.forget_left(ACCOUNT)
    found = holder.left(ACCOUNT)
    assert found is not None
    assert found.left is None
