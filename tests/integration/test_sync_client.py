"""The sync client against a scripted control plane, over real gRPC, into a real store."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import sync_pb2

from engine.names import Collection, Lane
from sidecar.clock import Clock
from sidecar.store.apply import Check
from sidecar.store.errors import RefusedError
from sidecar.store.reader import Reader
from sidecar.store.writer import Writer
from sidecar.sync.client import SyncClient, SyncSettings
from sidecar.sync.state import Phase, SyncState
from sidecar.upstream import Upstream
from tests.fakes.controlplane import ControlPlane, SyncStream, eventually
from tests.fakes.history import History, device, device_state
from tests.fakes.store import records

DEVICES, STATES = int(Collection.DEVICES), int(Collection.DEVICE_STATES)
URGENT, BULK = ("acme", Lane.URGENT), ("acme", Lane.BULK)


class Sidecar:
    """A writer and a sync client in a thread of their own."""

    def __init__(self, directory: Path, address: str, *, check: Check | None = None, **changes: Any) -> None:
        self.directory = directory
        self.settings = SyncSettings(
            upstream=Upstream(address),
            sidecar="pod-1",
            version="1.2.3",
            heartbeat_s=0.5,
            backoff_limit_s=0.2,
            **changes,
        )
        self.states: list[SyncState] = []
        self.reader = Reader(directory)
        self.clock = Clock()
        self._check = check
        self.start()

    def start(self) -> None:
        started = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)))
        self._thread.start()
        started.wait(10)

    async def _run(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self.writer = Writer(self.directory, check=self._check)
        self.client = SyncClient(self.writer, self.settings, on_state=self.states.append)
        self._task = asyncio.create_task(self.client.run())
        started.set()
        try:
            await self._task
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.writer.close()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def state(self) -> SyncState:
        return self.client.state

    def holds(self, *histories: History) -> bool:
        self.reader.follow()
        with self.reader.view() as view:
            return all(view.cursor(history.tenant, history.lane) == history.cursor for history in histories)

    def records(self, history: History) -> dict[tuple[int, str], bytes]:
        return records(self.writer.live, history.tenant, history.lane)

    def age_s(self) -> float | None:
        self.reader.follow()
        with self.reader.view() as view:
            return view.age_s("acme", self.clock)


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def sidecar(plane: ControlPlane, tmp_path: Path) -> Iterator[Sidecar]:
    sidecar = Sidecar(tmp_path, plane.address)
    yield sidecar
    sidecar.stop()
    sidecar.reader.close()


def histories() -> tuple[History, History]:
    urgent, bulk = History(lane=Lane.URGENT), History()
    urgent.commit({(STATES, "d1"): device_state("alice", 3)})
    bulk.commit({(DEVICES, f"d{n:03}"): device("alice") for n in range(250)})
    return urgent, bulk


def begin(plane: ControlPlane, *loaded: History) -> SyncStream:
    """Accepts a stream and brings it to these histories by snapshot."""
    stream = plane.accept()
    stream.scope("acme")
    for history in loaded:
        stream.snapshot(history)
    return stream


def test_fresh_sidecar_is_loaded_by_snapshots_then_follows_deltas(plane: ControlPlane, sidecar: Sidecar) -> None:
    urgent, bulk = histories()
    stream = plane.accept()
    assert (stream.hello.sidecar, stream.hello.version) == ("pod-1", "1.2.3")
    assert stream.hello.instance
    assert list(stream.hello.cursors) == []
    stream.scope("acme")
    stream.required(urgent)
    stream.snapshot(urgent)
    stream.snapshot(bulk)
    assert sidecar.holds(urgent, bulk)
    for history, change in ((urgent, {(STATES, "d2"): device_state("bob", 2)}), (bulk, {(DEVICES, "d000"): None})):
        stream.delta(history.commit(change))
        assert stream.expect("ack").ack.cursor == history.head
        assert sidecar.holds(history)
        assert sidecar.records(history) == history.records
    state = sidecar.state
    assert state.connected
    assert state.phases == {URGENT: Phase.FOLLOWING, BULK: Phase.FOLLOWING}
    assert (state.deltas, state.snapshots, state.streams, state.last_error) == (2, 2, 1, "")


def test_restarted_sidecar_resumes_from_its_cursors(plane: ControlPlane, sidecar: Sidecar) -> None:
    urgent, bulk = histories()
    first = begin(plane, urgent, bulk)
    sidecar.stop()
    sidecar.start()
    stream = plane.accept()
    assert stream.hello.instance != first.hello.instance
    assert sorted(stream.hello.cursors, key=lambda cursor: cursor.lane) == [urgent.head, bulk.head]
    assert sidecar.holds(urgent, bulk), "serves from disk before it hears anything"
    stream.scope("acme")
    stream.delta(urgent.commit({(STATES, "d1"): None}))
    assert stream.expect("ack").ack.cursor == urgent.head


def test_broken_stream_is_begun_anew_and_the_data_goes_on_serving(plane: ControlPlane, sidecar: Sidecar) -> None:
    urgent, bulk = histories()
    begin(plane, urgent, bulk).end(grpc.StatusCode.UNAVAILABLE)
    stream = plane.accept()
    assert len(stream.hello.cursors) == 2
    stream.end()
    plane.accept()
    plane.stop()
    eventually(lambda: not sidecar.state.connected)
    assert sidecar.holds(urgent, bulk)
    plane.start()
    stream = plane.accept()
    stream.scope("acme")
    stream.delta(bulk.commit({(DEVICES, "new"): device("bob")}))
    stream.expect("ack")
    assert sidecar.holds(urgent, bulk)
    assert sidecar.state.streams >= 4


def test_repeated_delta_is_acknowledged_again_and_changes_nothing(plane: ControlPlane, sidecar: Sidecar) -> None:
    _, bulk = histories()
    stream = begin(plane, bulk)
    raw = bulk.commit({(DEVICES, "new"): device("bob")})
    for _ in range(2):
        stream.delta(raw)
        assert stream.expect("ack").ack.cursor == bulk.head
    assert sidecar.records(bulk) == bulk.records
    assert sidecar.state.deltas == 1


def test_gap_asks_for_one_snapshot_and_applies_nothing_until_it_came(plane: ControlPlane, sidecar: Sidecar) -> None:
    _, bulk = histories()
    stream = begin(plane, bulk)
    held = dict(bulk.records)
    bulk.commit({(DEVICES, "lost"): device("bob")})
    for n in range(3):
        stream.delta(bulk.commit({(DEVICES, f"later{n}"): device("bob")}))
    request = stream.expect("snapshot_request").snapshot_request
    assert (request.tenant, request.lane) == ("acme", bulk.head.lane)
    assert sidecar.records(bulk) == held
    stream.snapshot(bulk)
    assert stream.nothing_received(), "one request, whatever else came in"
    stream.delta(bulk.commit({(DEVICES, "after"): device("bob")}))
    stream.expect("ack")
    assert sidecar.records(bulk) == bulk.records


def corrupted(raw: bytes) -> bytes:
    delta = sync_pb2.Delta.FromString(raw)
    delta.digest = b"\1" * 32
    return delta.SerializeToString()


def test_digest_mismatch_resyncs_once_then_opens_the_breaker_and_keeps_serving(
    plane: ControlPlane, sidecar: Sidecar
) -> None:
    urgent, bulk = histories()
    stream = begin(plane, urgent, bulk)
    held = dict(bulk.records)
    revision = bulk.revision
    stream.delta(corrupted(bulk.commit({(DEVICES, "new"): device("bob")})))
    refusal = stream.expect("refusal").refusal
    assert (refusal.code, refusal.revision, refusal.cursor.revision) == ("digest_mismatch", revision + 1, revision)
    stream.expect("snapshot_request")
    assert sidecar.state.phases[BULK] is Phase.AWAITING
    offer, chunks, end = bulk.snapshot()
    offer.cursor.digest = end.cursor.digest = b"\2" * 32
    stream.send(sync_pb2.SyncResponse(snapshot_offer=offer))
    for chunk in chunks:
        stream.chunk(chunk)
    stream.send(sync_pb2.SyncResponse(snapshot_end=end))
    assert stream.expect("refusal").refusal.code == "digest_mismatch"
    eventually(lambda: sidecar.state.broken == {BULK})
    assert sidecar.state.mismatches == 2
    stream.delta(urgent.commit({(STATES, "d9"): device_state("bob", 2)}))
    stream.expect("ack")
    assert stream.nothing_received(), "no second request"
    assert sidecar.holds(urgent)
    assert sidecar.records(bulk) == held
    stream.snapshot(bulk)  # the control plane may still mend it
    assert sidecar.state.broken == frozenset()
    assert sidecar.records(bulk) == bulk.records


def test_open_breaker_asks_again_after_a_while(plane: ControlPlane, tmp_path: Path) -> None:
    sidecar = Sidecar(tmp_path, plane.address, retry_s=0.1)
    try:
        _, bulk = histories()
        stream = begin(plane, bulk)
        stream.delta(corrupted(bulk.commit({(DEVICES, "new"): device("bob")})))
        stream.expect("refusal")
        stream.expect("snapshot_request")
        stream.snapshot(bulk)
        stream.delta(corrupted(bulk.commit({(DEVICES, "newer"): device("bob")})))
        stream.expect("refusal")
        assert stream.expect("snapshot_request").snapshot_request.reason == "another try"
        stream.snapshot(bulk)
        assert sidecar.holds(bulk)
    finally:
        sidecar.stop()
        sidecar.reader.close()


def test_head_with_another_digest_than_the_data_resyncs(plane: ControlPlane, sidecar: Sidecar) -> None:
    _, bulk = histories()
    stream = begin(plane, bulk)
    other = History()
    other.commit({(DEVICES, "other"): device("eve")})
    stream.heartbeat(other)
    assert stream.expect("refusal").refusal.code == "digest_mismatch"
    stream.expect("snapshot_request")
    stream.delta(other.commit({(DEVICES, "under way"): device("eve")}))  # sent before the request came in
    stream.snapshot(other)
    assert stream.nothing_received()
    assert sidecar.records(other) == other.records
    stream.delta(other.commit({(DEVICES, "after"): device("eve")}))
    assert stream.expect("ack").ack.cursor == other.head
    assert sidecar.state.phases == {BULK: Phase.FOLLOWING}


def test_refused_bulk_change_is_not_asked_for_with_every_move_of_the_head(
    plane: ControlPlane, sidecar: Sidecar
) -> None:
    urgent, bulk = histories()
    stream = begin(plane, urgent, bulk)
    stream.delta(bulk.commit({(DEVICES, "d"): b"\xff"}))
    assert stream.expect("refusal").refusal.code == "undecodable"
    bulk.commit({(DEVICES, "d"): None})
    stream.heartbeat(urgent, bulk)
    stream.delta(urgent.commit({}))
    stream.expect("ack")
    assert stream.nothing_received()
    assert sidecar.state.phases[BULK] is Phase.REFUSED


def test_empty_messages_say_nothing(plane: ControlPlane, sidecar: Sidecar) -> None:
    urgent, bulk = histories()
    stream = begin(plane, urgent, bulk)
    stream.scope()
    stream.send(sync_pb2.SyncResponse())
    stream.send(sync_pb2.SyncResponse(heartbeat=sync_pb2.Heartbeat()))
    stream.delta(urgent.commit({}))
    stream.expect("ack")
    assert sidecar.holds(urgent, bulk)
    assert sidecar.records(bulk) == bulk.records
    with sidecar.reader.view() as view:
        assert view.scope() == {"acme"}


@pytest.mark.parametrize(
    "response",
    [
        sync_pb2.SyncResponse(delta=b""),
        sync_pb2.SyncResponse(delta=b"\xff\xff"),
        sync_pb2.SyncResponse(delta=History("other").commit({(DEVICES, "d"): b""})),
        sync_pb2.SyncResponse(snapshot_offer=History("other").snapshot()[0]),
        sync_pb2.SyncResponse(snapshot_offer=sync_pb2.SnapshotOffer()),
        sync_pb2.SyncResponse(snapshot_required=sync_pb2.SnapshotRequired(tenant="acme")),
    ],
    ids=["empty delta", "garbage", "delta out of scope", "snapshot out of scope", "empty offer", "no lane"],
)
def test_what_the_protocol_rules_out_ends_the_stream_and_changes_nothing(
    plane: ControlPlane, sidecar: Sidecar, response: sync_pb2.SyncResponse
) -> None:
    urgent, bulk = histories()
    stream = begin(plane, urgent, bulk)
    stream.send(response)
    assert len(plane.accept().hello.cursors) == 2
    assert sidecar.state.last_error
    assert sidecar.holds(urgent, bulk)


def test_offer_without_a_digest_key_is_refused(plane: ControlPlane, sidecar: Sidecar) -> None:
    _, bulk = histories()
    stream = begin(plane)
    offer = bulk.snapshot()[0]
    offer.digest_key = b""
    stream.send(sync_pb2.SyncResponse(snapshot_offer=offer))
    assert stream.expect("refusal").refusal.code == "undecodable"


def test_answered_ping_confirms_as_of_the_ping_once_both_lanes_are_at_the_head(
    plane: ControlPlane, sidecar: Sidecar
) -> None:
    urgent, bulk = histories()
    stream = begin(plane, urgent)
    stream.follow(urgent)
    eventually(lambda: stream.pings >= 2)
    assert sidecar.age_s() is None, "the bulk lane was never loaded"
    stream.snapshot(bulk)
    stream.follow(urgent, bulk)
    eventually(lambda: sidecar.age_s() is not None)
    age_s = sidecar.age_s()
    assert age_s is not None
    assert age_s < 5
    stream.heads = None
    stream.heartbeat(urgent, bulk)  # answers no ping
    stream.heads = None
    before = sidecar.age_s()
    assert before is not None
    pings = stream.pings
    eventually(lambda: stream.pings > pings)
    after = sidecar.age_s()
    assert after is not None
    assert after > before, "a heartbeat that may be old confirms nothing"


def test_head_that_is_ahead_confirms_when_the_data_gets_there(plane: ControlPlane, sidecar: Sidecar) -> None:
    urgent, bulk = histories()
    stream = begin(plane, urgent, bulk)
    stream.follow(urgent, bulk)
    eventually(lambda: sidecar.age_s() is not None)
    missing = [bulk.commit({(DEVICES, f"new{n}"): device("bob")}) for n in range(2)]
    pings = stream.pings
    eventually(lambda: stream.pings > pings + 1)
    behind = sidecar.age_s()
    stream.heads = None
    assert behind is not None
    assert behind > 0.4, "not confirmed while it is behind"
    for raw in missing:
        stream.delta(raw)
        stream.expect("ack")
    caught_up = sidecar.age_s()
    assert caught_up is not None
    assert caught_up < behind + 5
    assert sidecar.holds(bulk)


def test_silent_connection_is_given_up_and_begun_anew(plane: ControlPlane, sidecar: Sidecar) -> None:
    urgent, bulk = histories()
    stream = begin(plane, urgent, bulk)
    began = time.monotonic()
    plane.accept()  # nothing was answered for three heartbeats of 0.5 s
    assert 1.0 < time.monotonic() - began < 6.0
    assert stream.closed.wait(5)
    assert "nothing heard" in sidecar.state.last_error
    assert sidecar.holds(urgent, bulk)


def test_urgent_deltas_apply_while_a_snapshot_comes_in(plane: ControlPlane, sidecar: Sidecar) -> None:
    urgent, bulk = histories()
    stream = begin(plane, urgent, bulk)
    bulk.commit({(DEVICES, f"e{n:04}"): device("bob") for n in range(2000)})
    offer, chunks, end = bulk.snapshot()
    stream.send(sync_pb2.SyncResponse(snapshot_offer=offer))
    for chunk in chunks:
        stream.chunk(chunk)
        stream.delta(urgent.commit({(STATES, f"d{chunk.chunk}"): device_state("alice", 3)}))
        assert stream.expect("ack").ack.cursor == urgent.head
        assert sidecar.holds(urgent)
    stream.send(sync_pb2.SyncResponse(snapshot_end=end))
    late = {bulk.head.lane: bulk, urgent.head.lane: urgent}
    stream.delta(bulk.commit({(DEVICES, "late"): device("bob")}))
    stream.delta(urgent.commit({(STATES, "late"): device_state("bob", 3)}))
    while late:
        cursor = stream.expect("ack").ack.cursor
        if cursor == late[cursor.lane].head:
            del late[cursor.lane]
    assert sidecar.holds(urgent, bulk)
    assert sidecar.records(bulk) == bulk.records
    assert sidecar.records(urgent) == urgent.records


def test_stream_that_ends_within_a_snapshot_leaves_the_old_data_and_no_files(
    plane: ControlPlane, sidecar: Sidecar
) -> None:
    _, bulk = histories()
    stream = begin(plane, bulk)
    held = dict(bulk.records)
    bulk.commit({(DEVICES, "new"): device("bob")})
    offer, chunks, _ = bulk.snapshot()
    stream.send(sync_pb2.SyncResponse(snapshot_offer=offer))
    stream.chunk(chunks[0])
    stream.end()
    stream = plane.accept()
    assert sidecar.records(bulk) == held
    live = sidecar.writer.live.path
    assert max(sidecar.directory.glob("gen-*"), key=lambda path: int(path.name[4:])) == live
    stream.scope("acme")
    stream.snapshot(bulk)
    assert sidecar.records(bulk) == bulk.records


def test_bad_policy_is_refused_until_a_newer_revision_brings_a_snapshot(plane: ControlPlane, tmp_path: Path) -> None:
    def check(collection: int, record_id: str, value: bytes) -> None:
        if value == b"bad":
            raise RefusedError("policy_rejected", f"{record_id}: line 3")

    sidecar = Sidecar(tmp_path, plane.address, check=check)
    try:
        urgent, bulk = histories()
        stream = begin(plane, urgent, bulk)
        good = dict(urgent.records)
        stream.delta(urgent.commit({(1, "payments"): b"bad", (STATES, "d2"): device_state("bob", 2)}))
        refusal = stream.expect("refusal").refusal
        assert (refusal.code, refusal.revision) == ("policy_rejected", urgent.revision)
        assert refusal.detail.endswith("payments: line 3")
        assert refusal.cursor.revision == urgent.revision - 1
        stream.heartbeat(urgent, bulk)
        stream.delta(bulk.commit({(DEVICES, "new"): device("bob")}))
        stream.expect("ack")
        assert stream.nothing_received(), "not asked for again while the head is the refused one"
        assert sidecar.records(urgent) == good
        assert sidecar.state.refusals[URGENT].code == "policy_rejected"
        assert sidecar.state.phases == {URGENT: Phase.REFUSED, BULK: Phase.FOLLOWING}
        urgent.commit({(1, "payments"): b"good"})
        stream.heartbeat(urgent, bulk)
        stream.expect("snapshot_request")
        stream.snapshot(urgent)
        assert sidecar.records(urgent) == urgent.records
        assert sidecar.state.refusals == {}
    finally:
        sidecar.stop()
        sidecar.reader.close()


def test_unknown_collections_pass_through(plane: ControlPlane, sidecar: Sidecar) -> None:
    urgent, bulk = histories()
    bulk.commit({(99, "x"): b"\xff"})
    stream = begin(plane, urgent, bulk)
    stream.delta(bulk.commit({(99, "y"): b"", (4000, "z"): b"far future"}))
    assert stream.expect("ack").ack.cursor == bulk.head
    assert sidecar.records(bulk) == bulk.records


def test_what_a_newer_control_plane_says_beyond_this_version_is_passed_over(
    plane: ControlPlane, sidecar: Sidecar
) -> None:
    urgent, bulk = histories()
    stream = begin(plane, urgent, bulk)
    # Field 900 of SyncResponse: a message of a kind that does not exist here.
    stream.send(sync_pb2.SyncResponse.FromString(b"\xa2\x38\x05later"))
    newer = sync_pb2.Heartbeat(heads=[urgent.head, bulk.head]).SerializeToString() + b"\xa2\x38\x05later"
    stream.send(sync_pb2.SyncResponse(heartbeat=sync_pb2.Heartbeat.FromString(newer)))
    # A delta is kept byte by byte: what is unknown in it counts for nothing, and does no harm.
    stream.delta(urgent.commit({(STATES, "d9"): device_state("alice", 3)}) + b"\xa2\x38\x05later")
    assert stream.expect("ack").ack.cursor == urgent.head
    assert sidecar.holds(urgent, bulk)
    assert sidecar.state.streams == 1


def test_scope_grows_and_shrinks_without_touching_the_others(plane: ControlPlane, sidecar: Sidecar) -> None:
    urgent, bulk = histories()
    stream = begin(plane, urgent, bulk)
    other = History("other")
    other.commit({(DEVICES, f"d{n}"): device("carol") for n in range(1500)})
    stream.heartbeat(urgent, bulk, other)  # a new tenant's head may come before the scope that announces it
    stream.scope("acme", "other")
    stream.snapshot(other)
    assert sidecar.holds(urgent, bulk, other)
    stream.scope("acme")
    eventually(lambda: sidecar.state.scope == {"acme"})
    eventually(lambda: not sidecar.records(other))
    with sidecar.reader.view() as view:
        assert view.cursor("other", Lane.BULK) is None
    assert sidecar.holds(urgent, bulk)


def test_retry_info_is_honoured_and_backoff_grows(plane: ControlPlane, sidecar: Sidecar) -> None:
    plane.accept()
    plane.refuse = (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.6)
    plane.stop()
    plane.attempts.clear()
    plane.start()
    eventually(lambda: len(plane.attempts) >= 3)
    gaps = [later - earlier for earlier, later in zip(plane.attempts, plane.attempts[1:], strict=False)]
    assert min(gaps) >= 0.6
    assert "RESOURCE_EXHAUSTED" in sidecar.state.last_error
    plane.refuse = None
    plane.accept()


def test_nothing_is_said_to_a_control_plane_that_is_about_to_refuse(plane: ControlPlane, sidecar: Sidecar) -> None:
    """A message that meets the refusal would hide when to come back, and a whole fleet would be there again at once."""
    plane.accept()
    plane.hesitate_s = 0.3
    plane.refuse = (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.6)
    plane.stop()
    plane.attempts.clear()
    plane.start()
    eventually(lambda: len(plane.attempts) >= 3)
    gaps = [later - earlier for earlier, later in zip(plane.attempts, plane.attempts[1:], strict=False)]
    assert min(gaps) >= 0.9
    assert not plane.overheard
    plane.refuse = None
    plane.accept()


def test_states_are_told_as_they_change(plane: ControlPlane, sidecar: Sidecar) -> None:
    _, bulk = histories()
    begin(plane, bulk).end()
    eventually(lambda: any(not state.connected and state.snapshots for state in sidecar.states))
    seen = [state.phases.get(BULK) for state in sidecar.states]
    assert Phase.LOADING in seen
    assert seen.index(Phase.LOADING) < seen.index(Phase.FOLLOWING)
    assert dataclasses.asdict(sidecar.states[-1])


def test_store_that_cannot_be_used_ends_the_client(plane: ControlPlane, sidecar: Sidecar, monkeypatch: Any) -> None:
    from sidecar.store.errors import UnreadableError

    _, bulk = histories()
    stream = begin(plane, bulk)

    def fail(raw: bytes) -> None:
        raise UnreadableError("gen-2: a page makes no sense")

    monkeypatch.setattr(sidecar.writer, "apply_delta", fail)
    stream.delta(bulk.commit({}))
    eventually(lambda: sidecar.error is not None)
    assert isinstance(sidecar.error, UnreadableError)
