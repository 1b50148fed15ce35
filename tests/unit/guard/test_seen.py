"""The fingerprints that guards remember as they came are bounded by their size too."""

from __future__ import annotations

import tracemalloc

from sidecar.guard.seen import MAX_KEPT, MAX_KEPT_BYTES, Fingerprints


def test_a_flood_of_the_longest_fingerprints_takes_little_memory() -> None:
    fingerprints = Fingerprints()
    tracemalloc.start()
    try:
        for number in range(MAX_KEPT):
            value = f"{number:08d}" * 1024
            fingerprints.get(value.encode(), {"canvas": value})
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_KEPT_BYTES
    finally:
        tracemalloc.stop()


def test_the_usual_ones_are_kept() -> None:
    fingerprints = Fingerprints()
    first = fingerprints.get(b"0" * 300, {"os": "macOS"})
    for number in range(1, MAX_KEPT):
        fingerprints.get(f"{number:0300d}".encode(), {"os": "macOS"})
    assert fingerprints.get(b"0" * 300, {"os": "macOS"}) is first
