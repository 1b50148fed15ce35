"""Sketches: unions, errors, sizes, and what is no sketch."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidInputError
from engine.sketch import MAX_SKETCH_BYTES, DistinctCount, HeavyHitters, item_hash, sketch_key, union

KEY = sketch_key(b"k" * 32)
HASHES = st.integers(0, 2**64 - 1)


def counted(items: list[int]) -> DistinctCount:
    sketch = DistinctCount()
    for item in items:
        sketch.add(item)
    return sketch


@settings(deadline=None)
@given(st.lists(HASHES, max_size=300), st.lists(HASHES, max_size=300))
def test_a_merge_is_the_sketch_of_the_union(one: list[int], other: list[int]) -> None:
    assert union([counted(one), counted(other)]) == counted([*one, *other])
    assert union([counted(other), counted(one)]) == counted([*one, *other])


@settings(deadline=None)
@given(st.lists(HASHES, max_size=300))
def test_what_arrives_twice_adds_nothing(items: list[int]) -> None:
    sketch = counted(items)
    assert union([sketch, sketch]) == sketch == counted(items * 2)


@settings(deadline=None)
@given(st.lists(HASHES, max_size=600))
def test_a_sketch_survives_the_wire(items: list[int]) -> None:
    data = counted(items).to_bytes()
    assert len(data) <= MAX_SKETCH_BYTES
    assert DistinctCount.from_bytes(data) == counted(items)


@pytest.mark.parametrize("size", [0, 1, 2, 10, 50, 200, 1000, 5000, 50_000])
def test_the_error_is_bounded(size: int) -> None:
    sketch = counted([item_hash(KEY, f"subject-{number}") for number in range(size)])
    # Four standard errors, and less than one for counts that can be told exactly.
    assert abs(sketch.estimate() - size) <= max(0.5 if size <= 10 else 2.0, 4 * 0.0325 * size)


def test_few_items_take_few_bytes() -> None:
    assert len(counted([item_hash(KEY, f"s{number}") for number in range(5)]).to_bytes()) <= 16


def test_another_tenant_hashes_otherwise() -> None:
    assert item_hash(KEY, "alice") != item_hash(sketch_key(b"l" * 32), "alice")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x02", b"\x01short", b"\x00ab", b"\x00\x04\x00\x01", b"\x00\x00\x01\x38", b"\x01" + b"\x40" * 1024],
)
def test_what_is_no_sketch_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="fingerprints"):
        DistinctCount.from_bytes(data, "fingerprints")


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=400))
def test_heavy_hitters_are_bounded_and_never_too_low(keys: list[int]) -> None:
    capacity = 8
    heavy: HeavyHitters[int, list[int]] = HeavyHitters(capacity)
    for key in keys:
        heavy.count(key, list)
    truth = Counter(keys)
    found = {key: count for key, count, _ in heavy.items()}
    assert len(found) <= capacity
    for key, count in truth.items():
        if count > len(keys) / capacity:
            assert key in found
    for key, count in found.items():
        assert truth[key] <= count <= truth[key] + len(keys) / capacity


def test_a_key_in_anothers_place_begins_anew() -> None:
    heavy: HeavyHitters[str, list[str]] = HeavyHitters(1)
    heavy.count("a", list).append("x")
    assert heavy.count("a", list) == ["x"]
    assert heavy.count("b", list) == []
