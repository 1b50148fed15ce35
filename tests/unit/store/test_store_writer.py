from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sidestep.v1 import resources_pb2 as pb
from sidestep.v1 import sync_pb2

from engine.names import Collection, Lane
from sidecar.clock import Clock
from sidecar.store.errors import (
    DigestMismatchError,
    GapError,
    LockedError,
    RefusedError,
    StorageFullError,
    UndecodableError,
)
from sidecar.store.reader import Reader
from sidecar.store.writer import Writer
from tests.fakes.history import History, device, device_state, grant, signal
from tests.fakes.store import content, load, records

DEVICES, SIGNALS = int(Collection.DEVICES), int(Collection.SIGNALS)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path)
    yield writer
    writer.close()


def bulk(writer: Writer) -> History:
    """A loaded bulk lane with one device."""
    history = History()
    history.commit({(DEVICES, "d1"): device("alice")})
    load(writer, history)
    return history


def test_delta_changes_records_indexes_and_cursor_together(writer: Writer, tmp_path: Path) -> None:
    history = bulk(writer)
    raw = history.commit(
        {
            (DEVICES, "d1"): device("bob"),
            (DEVICES, "d2"): device("bob"),
            (SIGNALS, "ip~10.0.0.0_8~x"): signal("10.0.0.0/8"),
        }
    )
    assert writer.apply_delta(raw) == history.cursor
    reader = Reader(tmp_path)
    with reader.view() as view:
        assert view.cursor("acme", Lane.BULK) == history.cursor
        assert view.subject_devices("acme", "alice") == []
        assert view.subject_devices("acme", "bob") == ["d1", "d2"]
        assert view.get(DEVICES, "acme", "d2") == device("bob")
        assert view.ip_signals("acme", bytes([10, 1, 2, 3])) == [signal("10.0.0.0/8")]
    assert writer.apply_delta(history.commit({(DEVICES, "d1"): None, (SIGNALS, "ip~10.0.0.0_8~x"): None})) is not None
    with reader.view() as view:
        assert view.subject_devices("acme", "bob") == ["d2"]
        assert view.get(DEVICES, "acme", "d1") is None
        assert view.ip_signals("acme", bytes([10, 1, 2, 3])) == []
    reader.close()
    assert [finding for finding in writer.scrub() if finding] == []


def test_urgent_indexes_follow_their_records(writer: Writer, tmp_path: Path) -> None:
    history = History(lane=Lane.URGENT)
    load(writer, history)
    states, grants = int(Collection.DEVICE_STATES), int(Collection.GRANTS)
    writer.apply_delta(
        history.commit(
            {
                (states, "d1"): device_state("alice", pb.DEVICE_TRUST_REVOKED),
                (states, "d2"): device_state("alice", pb.DEVICE_TRUST_ACTIVE),
                (states, "d3"): device_state("alice", 99),
                (grants, "g1"): grant("subject", "alice"),
                (grants, "g2"): grant("role", "teller"),
                (grants, "g3"): grant("device", "d1"),
                (grants, "g4"): b"",
            }
        )
    )
    reader = Reader(tmp_path)
    with reader.view() as view:
        assert view.blocked_devices("acme", "alice") == ["d1", "d3"]
        assert view.grant_ids("acme", "s", "alice") == ["g1"]
        assert view.grant_ids("acme", "r", "teller") == ["g2"]
        assert view.grant_ids("acme", "d", "d1") == ["g3"]
        assert view.grant_ids("acme", "r", "tell") == []
    writer.apply_delta(
        history.commit(
            {(states, "d1"): device_state("alice", pb.DEVICE_TRUST_ACTIVE), (grants, "g1"): grant("subject", "bob")}
        )
    )
    with reader.view() as view:
        assert view.blocked_devices("acme", "alice") == ["d3"]
        assert view.grant_ids("acme", "s", "alice") == []
        assert view.grant_ids("acme", "s", "bob") == ["g1"]
    reader.close()


def test_repeated_and_older_deltas_change_nothing(writer: Writer) -> None:
    history = bulk(writer)
    first = history.commit({(DEVICES, "d2"): device("bob")})
    second = history.commit({(DEVICES, "d2"): None})
    writer.apply_delta(first)
    writer.apply_delta(second)
    before = content(writer.live)
    assert writer.apply_delta(second) is None
    assert writer.apply_delta(first) is None
    assert content(writer.live) == before
    assert writer.cursor("acme", Lane.BULK) == history.cursor


def test_missing_revision_other_epoch_and_unloaded_lane_are_gaps(writer: Writer) -> None:
    history = bulk(writer)
    history.commit({(DEVICES, "d2"): device("bob")})
    later = history.commit({(DEVICES, "d3"): device("bob")})
    before = content(writer.live)
    with pytest.raises(GapError):
        writer.apply_delta(later)
    newer = History(epoch=2)
    with pytest.raises(GapError):
        writer.apply_delta(newer.commit({(DEVICES, "d9"): device("eve")}))
    with pytest.raises(GapError):
        writer.apply_delta(History(lane=Lane.URGENT).commit({(1, "p"): b""}))
    assert content(writer.live) == before


def test_wrong_digest_before_or_after_leaves_the_old_revision(writer: Writer) -> None:
    history = bulk(writer)
    before = content(writer.live)
    delta = sync_pb2.Delta.FromString(history.commit({(DEVICES, "d1"): None, (DEVICES, "d2"): device("bob")}))
    for field in ("digest", "previous_digest"):
        wrong = sync_pb2.Delta.FromString(delta.SerializeToString())
        setattr(wrong, field, b"\1" * 32)
        with pytest.raises(DigestMismatchError):
            writer.apply_delta(wrong.SerializeToString())
    altered = sync_pb2.Delta.FromString(delta.SerializeToString())
    altered.changes[1].value = device("eve")
    with pytest.raises(DigestMismatchError):
        writer.apply_delta(altered.SerializeToString())
    assert content(writer.live) == before
    assert writer.apply_delta(delta.SerializeToString()) == history.cursor


def test_records_that_make_no_sense_are_undecodable(writer: Writer) -> None:
    history = bulk(writer)
    before = content(writer.live)
    for key, value in (
        ((1, "p1"), b"x"),  # an urgent collection in the bulk lane
        ((0, "p1"), b"x"),
        ((DEVICES, ""), device("bob")),
        ((DEVICES, "a\0b"), device("bob")),
        ((DEVICES, "x" * 600), device("bob")),
        ((DEVICES, "d2"), b"\xff\xff"),
        ((DEVICES, "d2"), device("a\0b")),
        ((SIGNALS, "ip~10.0.0.1_8~x"), b""),  # host bits
        ((SIGNALS, "ip~010.0.0.0_8~x"), b""),
        ((SIGNALS, "ip~10.0.0.0_33~x"), b""),
        ((SIGNALS, "ip~10.0.0.0~x"), b""),
        ((SIGNALS, "ip~2001:DB8::_32~x"), b""),  # not the canonical spelling
    ):
        fork = History()
        fork.revision, fork.records, fork._digest = history.revision, dict(history.records), history.cursor.digest
        with pytest.raises(UndecodableError):
            writer.apply_delta(fork.commit({key: value}))
    for raw in (b"\xff", b"", sync_pb2.Delta(tenant="acme").SerializeToString()):
        with pytest.raises(UndecodableError):
            writer.apply_delta(raw)
    assert content(writer.live) == before


def test_unknown_collections_are_kept_opaque_in_their_lane(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    history = bulk(writer)
    urgent = History(lane=Lane.URGENT)
    load(writer, urgent)
    writer.apply_delta(history.commit({(77, "x"): b"\xff\xfe", (300, "y"): b"bulk"}))
    writer.apply_delta(urgent.commit({(33, "x"): b"\x00", (300, "y"): b"urgent"}))
    load(writer, urgent)  # copies the bulk lane to a new generation
    writer.close()
    writer = Writer(tmp_path)
    assert records(writer.live, "acme", Lane.BULK) == history.records
    assert records(writer.live, "acme", Lane.URGENT) == urgent.records
    assert [finding for finding in writer.scrub() if finding] == []
    writer.apply_delta(history.commit({(77, "x"): None}))
    assert records(writer.live, "acme", Lane.BULK) == history.records
    writer.close()


def test_refused_record_is_not_applied_and_says_why(tmp_path: Path) -> None:
    def check(collection: int, record_id: str, value: bytes) -> None:
        seen.append((collection, record_id))
        if value == b"bad":
            raise RefusedError("policy_rejected", f"{record_id}: no")

    seen: list[tuple[int, str]] = []
    writer = Writer(tmp_path, check=check)
    history = History(lane=Lane.URGENT)
    load(writer, history)
    writer.apply_delta(history.commit({(1, "p1"): b"good", (5, "s1"): b"", (1, "p0"): b"good"}))
    assert seen == [(1, "p1"), (1, "p0")]
    with pytest.raises(RefusedError, match="p2: no") as refused:
        writer.apply_delta(history.commit({(5, "s2"): b"", (1, "p2"): b"bad"}))
    assert refused.value.code == "policy_rejected"
    assert (5, "s2") not in records(writer.live, "acme", Lane.URGENT)
    with pytest.raises(RefusedError):
        load(writer, history)
    cursor = writer.cursor("acme", Lane.URGENT)
    assert cursor is not None
    assert cursor.revision == history.revision - 1
    writer.close()


def test_full_store_keeps_the_old_revision_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    writer = Writer(tmp_path, map_size=1 << 20)
    history = bulk(writer)
    big = history.commit({(66, f"x{n}"): bytes(4000) for n in range(400)})
    with pytest.raises(StorageFullError):
        writer.apply_delta(big)
    held = writer.cursor("acme", Lane.BULK)
    assert held is not None
    assert held.revision == history.revision - 1
    with pytest.raises(StorageFullError):
        load(writer, history)
    assert [finding for finding in writer.scrub() if finding] == []
    writer.close()
    writer = Writer(tmp_path, map_size=16 << 20)
    assert writer.apply_delta(big) == history.cursor
    writer.close()


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    with pytest.raises(LockedError):
        Writer(tmp_path)
    writer.close()
    Writer(tmp_path).close()


def test_tenant_out_of_scope_is_gone_at_once_and_its_records_soon(writer: Writer, tmp_path: Path) -> None:
    history = bulk(writer)
    other = History("other")
    other.commit({(DEVICES, f"d{n}"): device("alice") for n in range(1200)})
    load(writer, other)
    assert writer.scope() == {"acme", "other"}
    assert writer.set_scope(frozenset({"acme", "new"})) == {"other"}
    reader = Reader(tmp_path)
    with reader.view() as view:
        assert view.cursor("other", Lane.BULK) is None
        assert view.scope() == {"acme", "new"}
        assert view.get(DEVICES, "acme", "d1") == device("alice")
    assert [finding for finding in writer.scrub() if finding] == []
    slices = 0
    for _ in writer.drop():
        slices += 1
        assert [finding for finding in writer.scrub() if finding] == []
    assert slices > 3
    assert records(writer.live, "other", Lane.BULK) == {}
    with reader.view() as view:
        assert view.subject_devices("other", "alice") == []
        assert view.subject_devices("acme", "alice") == ["d1"]
    assert [finding for finding in writer.scrub() if finding] == []
    assert records(writer.live, "acme", Lane.BULK) == history.records
    reader.close()


def test_empty_scope_never_wipes(writer: Writer) -> None:
    history = bulk(writer)
    with pytest.raises(ValueError, match="says nothing"):
        writer.set_scope(frozenset())
    assert records(writer.live, "acme", Lane.BULK) == history.records


class FakeClock(Clock):
    __slots__ = ("booted", "walled")

    def __init__(self, boot_id: str, boottime: float, wall: float) -> None:
        super().__init__(boot_id)
        self.booted, self.walled = boottime, wall

    def boottime(self) -> float:
        return self.booted

    def wall(self) -> float:
        return self.walled


def test_age_is_that_of_the_older_lane_by_boot_time_within_a_boot_and_wall_time_across(tmp_path: Path) -> None:
    clock = FakeClock("one", 100.0, 1_800_000_000.0)
    writer = Writer(tmp_path, clock=clock)
    reader = Reader(tmp_path, clock=clock)
    with reader.view() as view:
        assert view.age_s("acme", clock) is None
    writer.confirm("acme", Lane.URGENT, boottime=90.0, wall=1_799_999_990.0)
    with reader.view() as view:
        assert view.age_s("acme", clock) is None, "one lane was never confirmed"
    writer.confirm("acme", Lane.BULK, boottime=95.0, wall=1_799_999_995.0)
    with reader.view() as view:
        assert view.age_s("acme", clock) == 10.0
        assert view.age_s("other", clock) is None
        assert view.age_s("acme", FakeClock("one", 100.0, 5.0)) == 10.0, "a jump of the wall clock changes nothing"
        assert view.age_s("acme", FakeClock("one", 89.0, 1_800_000_000.0)) is None, "impossible"
        assert view.age_s("acme", FakeClock("two", 1.0, 1_800_000_000.0)) == 10.0
        assert view.age_s("acme", FakeClock("two", 1.0, 1_799_999_992.0)) is None, "the wall clock went back"
    reader.close()
    writer.close()
