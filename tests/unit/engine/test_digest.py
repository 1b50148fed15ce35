from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.digest import EMPTY, Digest

KEY = bytes(range(32))
RECORDS = st.tuples(st.integers(1, 200), st.text(max_size=8), st.binary(max_size=16))


def of(records: list[tuple[int, str, bytes]], start: bytes = EMPTY) -> bytes:
    digest = Digest(KEY, start)
    for record in records:
        digest.add(*record)
    return digest.value()


def test_one_record_is_its_keyed_hash() -> None:
    expected = blake2b(b"\x00\x40" + b"\x00\x00\x00\x02" + b"d1" + b"value", digest_size=32, key=KEY).digest()
    assert of([(64, "d1", b"value")]) == expected


def test_what_belongs_to_the_id_and_what_to_the_value_is_told_apart() -> None:
    assert of([(1, "ab", b"c")]) != of([(1, "a", b"bc")]) != of([(2, "a", b"bc")])
    assert Digest(bytes(32)).value() == EMPTY


@given(st.lists(RECORDS, max_size=12), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_removal_undoes(records: list[tuple[int, str, bytes]], random: object) -> None:
    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert of(records) == of(shuffled)
    digest = Digest(KEY, of(records))
    for record in shuffled:
        digest.remove(*record)
    assert digest.value() == EMPTY


@given(st.lists(RECORDS, max_size=6), st.lists(RECORDS, max_size=6))
def test_it_continues_from_a_stored_value(
    first: list[tuple[int, str, bytes]], then: list[tuple[int, str, bytes]]
) -> None:
    assert of(then, of(first)) == of(first + then)


@pytest.mark.parametrize(("key", "value"), [(b"short", EMPTY), (KEY, b"short")])
def test_sizes_are_checked(key: bytes, value: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Digest(key, value)
