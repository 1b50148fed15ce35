"""The hash chain: fixed for good, because what was anchored must stay checkable; and any difference shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.journal.chain import HASH_BYTES, genesis, link


def test_the_hashes_are_those_of_every_version() -> None:
    """Taken with `sha256sum`."""
    start = genesis("w0-000000000001")
    assert start.hex() == "5093fe642306df0667489d29af91c65ea7461a247c65dc49c4a3a46a83780f4c"
    assert link(start, b"payload").hex() == "0580ea307ca63ea8018a7abba1fa6ea5c9f13b24df4de0f8c79eca0c31c33580"
    assert len(start) == len(link(start, b"payload")) == HASH_BYTES == 32


def test_chains_do_not_share_hashes() -> None:
    assert genesis("w0-000000000001") != genesis("w1-000000000001")


def head(records: list[bytes]) -> bytes:
    found = genesis("w0-000000000001")
    for record in records:
        found = link(found, record)
    return found


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=6), st.lists(st.binary(min_size=1, max_size=8), max_size=6))
def test_only_the_same_records_in_the_same_order_have_the_same_head(one: list[bytes], other: list[bytes]) -> None:
    assert (head(one) == head(other)) == (one == other)
