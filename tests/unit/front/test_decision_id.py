from __future__ import annotations

import time
import uuid

from sidecar.front.decision_id import DecisionIds, id_text


def test_id_is_a_uuid_of_version_7_that_begins_with_the_time() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(bytes=DecisionIds().next())
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000


def test_text_is_the_usual_one() -> None:
    raw = DecisionIds().next()
    assert id_text(raw) == str(uuid.UUID(bytes=raw))


def test_ids_rise_also_within_a_millisecond() -> None:
    ids = DecisionIds(lambda: 1_700_000_000_000_000_000)
    made = [ids.next() for _ in range(20_000)]
    assert made == sorted(set(made))
    assert {raw[:6] for raw in made} == {made[0][:6]}


def test_ids_rise_when_the_clock_is_set_back() -> None:
    times = iter([5_000_000_000, 6_000_000_000, 1_000_000_000, 5_999_000_000])
    ids = DecisionIds(lambda: next(times))
    made = [ids.next() for _ in range(4)]
    assert made == sorted(set(made))


def test_a_spent_millisecond_runs_into_the_next() -> None:
    ids = DecisionIds(lambda: 1_000_000_000)
    first = ids.next()
    ids._random = (1 << 74) - 1
    second = ids.next()
    assert int.from_bytes(second[:6], "big") == int.from_bytes(first[:6], "big") + 1
    assert uuid.UUID(bytes=second).version == 7


def test_two_makers_do_not_collide() -> None:
    one, other = DecisionIds(lambda: 0), DecisionIds(lambda: 0)
    assert not {one.next() for _ in range(10_000)} & {other.next() for _ in range(10_000)}
