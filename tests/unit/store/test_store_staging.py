from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sidestep.v1 import sync_pb2

from engine.names import Collection, Lane
from sidecar.store.errors import DigestMismatchError, StoreError, UndecodableError
from sidecar.store.reader import Reader
from sidecar.store.staging import Staging
from sidecar.store.writer import Writer
from tests.fakes.history import History, device, device_state, grant, signal
from tests.fakes.store import content, load, records

DEVICES, SIGNALS = int(Collection.DEVICES), int(Collection.SIGNALS)
STATES, GRANTS = int(Collection.DEVICE_STATES), int(Collection.GRANTS)


@contextmanager
def fresh_writer() -> Iterator[Writer]:
    with tempfile.TemporaryDirectory() as directory:
        writer = Writer(Path(directory))
        try:
            yield writer
        finally:
            writer.close()


SUBJECTS = st.sampled_from(["alice", "bob"])
DELETED = st.none()
IDS = st.sampled_from(["d1", "d2", "d3", "é", "d10"])
PREFIXES = ["10.0.0.0_8", "10.1.0.0_16", "10.1.2.0_24", "10.1.2.3_32", "0.0.0.0_0", "2001:db8::_32", "::_0"]
SIGNAL_IDS = st.builds(lambda prefix, source: f"ip~{prefix}~{source}", st.sampled_from(PREFIXES), SUBJECTS)
BULK = st.one_of(
    st.tuples(st.tuples(st.just(DEVICES), IDS), st.one_of(DELETED, SUBJECTS.map(device))),
    st.tuples(
        st.tuples(st.just(SIGNALS), SIGNAL_IDS), st.one_of(DELETED, st.integers(0, 99).map(lambda n: signal("", n)))
    ),
    st.tuples(st.tuples(st.just(90), IDS), st.one_of(DELETED, st.binary(max_size=5))),
)
URGENT = st.one_of(
    st.tuples(
        st.tuples(st.just(STATES), IDS),
        st.one_of(DELETED, st.builds(device_state, SUBJECTS, st.integers(0, 3))),
    ),
    st.tuples(
        st.tuples(st.just(GRANTS), IDS),
        st.one_of(DELETED, st.builds(grant, st.sampled_from(["subject", "role", "device"]), SUBJECTS)),
    ),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just(Lane.BULK), st.lists(BULK, min_size=1, max_size=6).map(dict)),
        st.tuples(st.just(Lane.URGENT), st.lists(URGENT, min_size=1, max_size=6).map(dict)),
        st.tuples(st.sampled_from(["snapshot bulk", "snapshot urgent"]), st.integers(0, 4)),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(before=STEPS, after=STEPS)
def test_snapshot_then_deltas_equals_a_fresh_snapshot(before: list, after: list) -> None:  # type: ignore[type-arg]
    lanes = {Lane.BULK: History(lane=Lane.BULK), Lane.URGENT: History(lane=Lane.URGENT)}
    for kind, changes in before:
        if kind in lanes:
            lanes[kind].commit(changes)
    with fresh_writer() as writer, fresh_writer() as other:
        for history in lanes.values():
            load(writer, history, chunk_records=2)
        steps = iter(after)

        def write_some(count: int) -> None:
            for _ in range(count):
                kind, changes = next(steps, (None, None))
                if kind in lanes:
                    raw = lanes[kind].commit(changes)
                    writer.apply_delta(raw)
                    assert writer.apply_delta(raw) is None

        for kind, argument in steps:
            if kind in lanes:
                writer.apply_delta(lanes[kind].commit(argument))
            else:
                lane = Lane.BULK if kind == "snapshot bulk" else Lane.URGENT
                load(writer, lanes[lane], chunk_records=2, between=lambda count=argument: write_some(count))  # type: ignore[misc]
        for history in lanes.values():
            load(other, history)
            assert writer.cursor("acme", history.lane) == history.cursor
            assert records(writer.live, "acme", history.lane) == history.records
        assert content(writer.live) == content(other.live)
        assert [finding for finding in writer.scrub() if finding] == []


def big_bulk(count: int = 3000) -> History:
    history = History()
    history.commit({(DEVICES, f"d{n:05}"): device(f"u{n * 7919 % count}") for n in range(count)})
    return history


def test_live_generation_serves_and_takes_deltas_of_every_lane_until_the_swap(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    urgent, bulk = History(lane=Lane.URGENT), big_bulk()
    load(writer, urgent)
    load(writer, bulk)
    first = writer.live.path
    reader = Reader(tmp_path)
    revisions: list[int] = []

    def revoke() -> None:
        state = device_state("u1", 3)
        assert writer.apply_delta(urgent.commit({(STATES, f"d{urgent.revision}"): state})) == urgent.cursor
        writer.apply_delta(bulk.commit({(DEVICES, "extra"): device(f"u{bulk.revision}")}))
        with reader.view() as view:
            cursor = view.cursor("acme", Lane.URGENT)
            assert cursor == urgent.cursor
            assert len(view.blocked_devices("acme", "u1")) == cursor.revision
            revisions.append(cursor.revision)

    load(writer, bulk, between=revoke)
    assert writer.live.path != first
    assert len(revisions) > 30, "chunks, index rows, copies, catching up"
    assert not first.exists()
    reader.follow()
    with reader.view() as view:
        assert view.cursor("acme", Lane.BULK) == bulk.cursor
        assert view.cursor("acme", Lane.URGENT) == urgent.cursor
    assert [finding for finding in writer.scrub() if finding] == []
    reader.close()
    writer.close()


def test_deltas_after_the_snapshot_of_a_new_lane_wait_for_its_swap(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    history = big_bulk(300)
    writer.set_scope(frozenset({"acme"}))
    offer, chunks, end = history.snapshot()
    staging = writer.stage(offer)
    for chunk in chunks:
        staging.add(chunk)
    waiting = [history.commit({(DEVICES, f"late{n}"): device("alice")}) for n in range(5)]
    assert [writer.apply_delta(raw) for raw in waiting] == [None] * 5
    assert writer.cursor("acme", Lane.BULK) is None
    for _ in staging.finish(end):
        pass
    assert writer.apply_delta(history.commit({(DEVICES, "last"): device("alice")})) is None
    assert staging.commit() == history.cursor
    assert records(writer.live, "acme", Lane.BULK) == history.records
    writer.close()


def test_deltas_that_follow_the_snapshot_do_not_meet_the_wrong_data_it_replaces(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    wrong, right = History(), History()
    wrong.commit({(DEVICES, "d"): device("eve")})
    right.commit({(DEVICES, "d"): device("alice")})
    load(writer, wrong)
    offer, chunks, end = right.snapshot()
    staging = writer.stage(offer)
    assert writer.apply_delta(right.commit({(DEVICES, "e"): device("alice")})) is None
    staging.add(chunks[0])
    for _ in staging.finish(end):
        pass
    assert writer.apply_delta(right.commit({(DEVICES, "f"): device("alice")})) is None
    assert staging.commit() == right.cursor
    assert records(writer.live, "acme", Lane.BULK) == right.records
    writer.close()


def test_confirmations_and_scope_survive_the_swap(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    history = History()
    load(writer, history)
    for lane in Lane:
        writer.confirm("acme", lane, boottime=writer.clock.boottime(), wall=writer.clock.wall())
    load(writer, history)
    reader = Reader(tmp_path)
    with reader.view() as view:
        age = view.age_s("acme", writer.clock)
        assert age is not None
        assert age < 60
        assert view.scope() == {"acme"}
    reader.close()
    writer.close()


def given_up(writer: Writer, staging: Staging, before: Path) -> None:
    assert writer.live.path == before
    assert sorted(path.name for path in writer.directory.path.glob("gen-*")) == [before.name]
    with pytest.raises(StoreError):
        staging.commit()


def test_snapshot_that_is_not_what_it_says_is_given_up_without_a_trace(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    history = big_bulk(300)
    load(writer, history)
    history.commit({(DEVICES, "new"): device("alice")})
    live = writer.live.path

    def snapshot() -> tuple[sync_pb2.SnapshotOffer, list[sync_pb2.SnapshotChunk], sync_pb2.SnapshotEnd]:
        return history.snapshot()

    def attempt(
        offer: sync_pb2.SnapshotOffer,
        chunks: list[sync_pb2.SnapshotChunk],
        end: sync_pb2.SnapshotEnd,
        error: type[Exception],
    ) -> None:
        staging = writer.stage(offer)

        def run() -> None:
            for chunk in chunks:
                staging.add(chunk)
            for _ in staging.finish(end):
                pass

        with pytest.raises(error):
            run()
        given_up(writer, staging, live)

    offer, chunks, end = snapshot()
    attempt(offer, chunks[1:], end, UndecodableError)  # the first chunk is missing
    attempt(offer, [chunks[0], chunks[0]], end, UndecodableError)  # repeated
    attempt(offer, chunks[:-1], end, UndecodableError)  # the last one is missing
    chunks[1].payload = b"\xff"
    attempt(offer, chunks, end, UndecodableError)
    offer, chunks, end = snapshot()
    offer.records -= 1
    attempt(offer, chunks, end, UndecodableError)
    offer, chunks, end = snapshot()
    offer.cursor.digest = end.cursor.digest = b"\1" * 32
    attempt(offer, chunks, end, DigestMismatchError)
    offer, chunks, end = snapshot()
    chunks[0].payload = chunks[0].payload.replace(b"u0", b"u9")
    attempt(offer, chunks, end, DigestMismatchError)
    offer, chunks, end = snapshot()
    end.cursor.revision += 1
    attempt(offer, chunks, end, UndecodableError)
    offer, chunks, end = snapshot()
    repeated = sync_pb2.SnapshotRecords.FromString(chunks[0].payload)
    repeated.records[1].CopyFrom(repeated.records[0])
    chunks[0].payload = repeated.SerializeToString()
    attempt(offer, chunks, end, UndecodableError)
    offer, chunks, end = snapshot()
    offer.digest_key = b"short"
    with pytest.raises(UndecodableError):
        writer.stage(offer)
    load(writer, history)
    assert records(writer.live, "acme", Lane.BULK) == history.records
    writer.close()


def test_unsorted_snapshot_loads_as_well(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    history = big_bulk(300)
    offer, chunks, end = history.snapshot()
    chunks.reverse()
    for number, chunk in enumerate(chunks):
        chunk.chunk = number
    writer.set_scope(frozenset({"acme"}))
    staging = writer.stage(offer)
    for chunk in chunks:
        staging.add(chunk)
    for _ in staging.finish(end):
        pass
    staging.commit()
    assert records(writer.live, "acme", Lane.BULK) == history.records
    assert [finding for finding in writer.scrub() if finding] == []
    writer.close()


def test_new_offer_of_a_lane_replaces_the_one_under_way_and_others_go_on(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    urgent, bulk = History(lane=Lane.URGENT), big_bulk(300)
    writer.set_scope(frozenset({"acme"}))
    offer, chunks, end = bulk.snapshot()
    first = writer.stage(offer)
    first.add(chunks[0])
    load(writer, urgent)  # swaps a generation in between
    second = writer.stage(offer)
    with pytest.raises(StoreError):
        first.add(chunks[1])
    for chunk in chunks:
        second.add(chunk)
    for _ in second.finish(end):
        pass
    second.commit()
    assert writer.cursors() == {("acme", Lane.URGENT): urgent.cursor, ("acme", Lane.BULK): bulk.cursor}
    writer.close()


def test_too_many_waiting_deltas_give_the_snapshot_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.store.staging.MAX_QUEUED_BYTES", 2000)
    writer = Writer(tmp_path)
    history = big_bulk(10)
    writer.set_scope(frozenset({"acme"}))
    offer, _, _ = history.snapshot()
    staging = writer.stage(offer)
    live = writer.live.path
    for n in range(30):
        raw = history.commit({(DEVICES, f"late{n}"): device("alice")})
        try:
            writer.apply_delta(raw)
        except StoreError:
            break
    given_up(writer, staging, live)
    writer.close()


def test_tenant_that_leaves_the_scope_does_not_come_back_with_a_snapshot(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    gone, kept = History("gone"), big_bulk(100)
    gone.commit({(DEVICES, "d"): device("alice")})
    load(writer, gone)
    writer.set_scope(frozenset({"gone", "acme"}))
    offer, chunks, end = kept.snapshot()
    staging = writer.stage(offer)
    writer.set_scope(frozenset({"acme"}))
    for chunk in chunks:
        staging.add(chunk)
    for _ in staging.finish(end):
        pass
    staging.commit()
    assert records(writer.live, "gone", Lane.BULK) == {}
    assert writer.scope() == {"acme"}
    assert [finding for finding in writer.scrub() if finding] == []
    writer.close()
