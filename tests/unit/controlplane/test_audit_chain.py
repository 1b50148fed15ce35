"""The chain of the audit log: any edit, gap, repetition, exchange or cut is found, with the exact entry."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st
from sidestep.v1 import audit_pb2

from controlplane.audit import genesis, link, record_digest, verify

Records = list[audit_pb2.AuditRecord]


def chain(length: int, tenant: str = "acme") -> Records:
    records: Records = []
    previous = genesis(tenant)
    for number in range(1, length + 1):
        entry = audit_pb2.AuditEntry(tenant=tenant, number=number, actor="alice", action="put", detail=f"no. {number}")
        encoded = entry.SerializeToString(deterministic=True)
        record = audit_pb2.AuditRecord(entry=encoded, previous_hash=previous, hash=link(previous, encoded))
        records.append(record)
        previous = record.hash
    return records


def head_of(records: Records) -> audit_pb2.AuditHead:
    return audit_pb2.AuditHead(number=len(records), hash=records[-1].hash)


def numbers(records: Records, head: audit_pb2.AuditHead | None = None) -> list[int]:
    return [finding.number for finding in verify("acme", records, head)]


LENGTH = st.integers(2, 12)


@given(LENGTH)
def test_a_whole_chain_has_no_findings(length: int) -> None:
    records = chain(length)
    assert numbers(records, head_of(records)) == []
    assert numbers(records, audit_pb2.AuditHead(number=1, hash=records[0].hash)) == []


@given(st.data())
def test_any_bit_flipped_anywhere_is_found_with_its_entry(data: st.DataObject) -> None:
    records = chain(data.draw(LENGTH))
    head = head_of(records)
    at = data.draw(st.integers(0, len(records) - 1))
    field = data.draw(st.sampled_from(["entry", "previous_hash", "hash"]))
    value = bytearray(getattr(records[at], field))
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    value[bit // 8] ^= 1 << (bit % 8)
    setattr(records[at], field, bytes(value))
    assert numbers(records, head)[0] == at + 1


@given(st.data())
def test_a_replaced_entry_with_a_fitting_hash_is_found_with_its_entry(data: st.DataObject) -> None:
    records = chain(data.draw(LENGTH))
    head = head_of(records)
    at = data.draw(st.integers(0, len(records) - 1))
    entry = audit_pb2.AuditEntry.FromString(records[at].entry)
    entry.actor = "mallory"
    records[at].entry = entry.SerializeToString()
    records[at].hash = link(records[at].previous_hash, records[at].entry)
    assert numbers(records, head) == [at + 1]


@given(st.data())
def test_a_chain_made_anew_from_an_entry_on_is_found_by_the_head(data: st.DataObject) -> None:
    records = chain(data.draw(LENGTH))
    head = head_of(records)
    at = data.draw(st.integers(0, len(records) - 1))
    entry = audit_pb2.AuditEntry.FromString(records[at].entry)
    entry.actor = "mallory"
    records[at].entry = entry.SerializeToString()
    for before, record in zip([None, *records[:-1]], records, strict=True):
        record.previous_hash = genesis("acme") if before is None else before.hash
        record.hash = link(record.previous_hash, record.entry)
    assert numbers(records) == []
    assert numbers(records, head) == [head.number]


@given(st.data())
def test_a_gap_is_found_with_its_first_entry(data: st.DataObject) -> None:
    records = chain(data.draw(st.integers(3, 12)))
    head = head_of(records)
    first = data.draw(st.integers(0, len(records) - 2))
    last = data.draw(st.integers(first, len(records) - 2))
    del records[first : last + 1]
    assert numbers(records, head) == [first + 1]


@given(st.data())
def test_a_cut_tail_is_found_by_the_head(data: st.DataObject) -> None:
    records = chain(data.draw(LENGTH))
    head = head_of(records)
    left = data.draw(st.integers(0, len(records) - 1))
    assert numbers(records[:left]) == []
    assert numbers(records[:left], head) == [left + 1]


@given(st.data())
def test_a_repeated_entry_is_found(data: st.DataObject) -> None:
    records = chain(data.draw(LENGTH))
    at = data.draw(st.integers(0, len(records) - 1))
    records.insert(data.draw(st.integers(at + 1, len(records))), records[at])
    assert numbers(records, head_of(chain(len(records) - 1))) == [at + 1]


@given(st.data())
def test_exchanged_entries_are_found(data: st.DataObject) -> None:
    records = chain(data.draw(LENGTH))
    at = data.draw(st.integers(0, len(records) - 2))
    records[at], records[at + 1] = records[at + 1], records[at]
    assert numbers(records)[0] == at + 1


def test_another_tenants_chain_is_not_taken_for_this_ones() -> None:
    assert numbers(chain(3, "globex"))[0] == 1


def test_the_hash_is_what_the_contract_says() -> None:
    first, second = chain(2)
    assert first.previous_hash == sha256(b"sidestep audit 1\0acme").digest()
    assert second.hash == sha256(first.hash + second.entry).digest()


def test_digests_of_records_tell_none_one_and_several_apart() -> None:
    assert record_digest({(1, "a"): None}) == b""
    assert record_digest({(1, "a"): b"x"}) == sha256(b"x").digest()
    assert record_digest({(1, "a"): None, (1, "b"): None}) == b""
    of_two = record_digest({(2, "b"): b"y", (1, "a"): b"x"})
    told = b"\0\0\0\1a\0" + (1).to_bytes(8, "big") + b"x" + b"\0\0\0\2b\0" + (1).to_bytes(8, "big") + b"y"
    assert of_two == sha256(told).digest()
