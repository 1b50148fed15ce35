"""The worker as a process: a real store, journal and sockets, and a gRPC client that sees what a service would."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sidestep.v1 import decision_pb2, decision_pb2_grpc

from sidecar.journal.record import UnrecordedRecord
from sidecar.journal.segment import SegmentName, worker_name
from sidecar.page import State, Word, WorkerWord, boottime_ms
from tests.fakes.journal import read_all, read_journal, recorded_ids
from tests.fakes.records import TRACEPARENT
from tests.fakes.stock import Stock, exempted, request, satisfied
from tests.processes import Worker, until, worker

SERVICE = "sidestep.v1.DecisionService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
TRANSPORTS = ("native", "grpcio")


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[Stock]:
    stock = Stock(tmp_path)
    stock.load()
    yield stock
    stock.close()


@contextlib.contextmanager
def connected(target: str) -> Iterator[Any]:
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


@contextlib.contextmanager
def asking(target: str) -> Iterator[Any]:
    with connected(target) as channel:
        yield decision_pb2_grpc.DecisionServiceStub(channel)


def status(target: str, service: str = SERVICE) -> int:
    with connected(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_listener_answers_and_everything_is_recorded(stock: Stock, tmp_path: Path, transport: str) -> None:
    listen = f"127.0.0.1:0,unix://{tmp_path}/run/s.sock"
    with worker(tmp_path, SIDESTEP_TRANSPORT=transport, SIDESTEP_LISTEN=listen) as started:
        answered = set()
        for target in started.targets():
            assert status(target) == status(target, "") == SERVING
            with asking(target) as stub:
                for question, basis in (
                    (exempted(), decision_pb2.BASIS_EXEMPTION_GRANT),
                    (satisfied(), decision_pb2.BASIS_ASSURANCE_SATISFIED),
                    (request(), decision_pb2.BASIS_CHALLENGE),
                    (request("mallory"), decision_pb2.BASIS_BLOCKED),
                ):
                    response = stub.Evaluate(question, timeout=5, metadata=(("traceparent", TRACEPARENT),))
                    assert response.basis == basis
                    answered.add(response.decision_id)
                batch = decision_pb2.EvaluateBatchRequest(requests=[request(), request(""), satisfied()] * 30)
                results = stub.EvaluateBatch(batch, timeout=5).results
                assert [result.WhichOneof("result") for result in results] == ["response", "error", "response"] * 30
                answered |= {result.response.decision_id for result in results if result.HasField("response")}
        assert len(answered) == 2 * 64
        records = read_journal(tmp_path / "journal")
        assert recorded_ids(tmp_path / "journal") == answered
        assert len(records) == 2 * 64
        assert started.slot.get(WorkerWord.JOURNAL_RECORDS) == len(read_all(tmp_path / "journal")) == 2 * (64 + 1)
        assert sum(record.traceparent == TRACEPARENT for record in records) == 2 * 4
        assert started.stop() == 0
        assert started.slot.state is State.DEAD
        assert not (tmp_path / "run" / "s.sock").exists()


def test_idle_worker_accounts_for_what_it_could_not_record(stock: Stock, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    filler = journal / str(SegmentName("w", 0, 1, 0))
    with filler.open("wb") as file:
        file.truncate(1 << 20)
    with worker(tmp_path, SIDESTEP_JOURNAL_MAX="1MiB") as started, asking(started.grpc) as stub:
        for _ in range(3):
            assert stub.Evaluate(exempted(), timeout=5).outcome == decision_pb2.OUTCOME_STEP_UP
        assert started.slot.get(WorkerWord.JOURNAL_FULL) == 1
        filler.unlink()
        until(lambda: started.slot.get(WorkerWord.JOURNAL_RECORDS) == 1, "the record of what had none")
        (tally,) = read_all(journal)
        assert isinstance(tally, UnrecordedRecord)
        assert tally.count == started.slot.get(WorkerWord.UNRECORDED) == 3
        assert started.slot.get(WorkerWord.JOURNAL_FULL) == 0
        assert stub.Evaluate(exempted(), timeout=5).basis == decision_pb2.BASIS_EXEMPTION_GRANT


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_before_there_is_data_nothing_is_decided_and_health_says_so(tmp_path: Path, transport: str) -> None:
    stock = Stock(tmp_path)
    with (
        contextlib.closing(stock),
        worker(tmp_path, state=State.NOT_LOADED, SIDESTEP_TRANSPORT=transport) as started,
        connected(started.grpc) as channel,
    ):
        assert (status(started.grpc), status(started.grpc, "")) == (NOT_SERVING, SERVING)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
        assert next(watch).status == NOT_SERVING
        stub = decision_pb2_grpc.DecisionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Evaluate(satisfied(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        stock.load()
        assert next(watch).status == SERVING
        assert stub.Evaluate(satisfied(), timeout=5).outcome == decision_pb2.OUTCOME_ALLOW
        assert started.slot.get(Word.URGENT_REVISION) == stock.urgent.revision
        started.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as ended:
            next(watch)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert started.process.wait(20) == 0


def test_bad_requests_get_their_codes(stock: Stock, tmp_path: Path) -> None:
    with worker(tmp_path, SIDESTEP_MAX_MESSAGE_BYTES="2048") as started, connected(started.grpc) as channel:
        evaluate = channel.unary_unary(f"/{SERVICE}/Evaluate")

        def code(payload: bytes) -> tuple[grpc.StatusCode, str]:
            with pytest.raises(grpc.RpcError) as caught:
                evaluate(payload, timeout=5)
            return caught.value.code(), caught.value.details()

        assert code(b"\xff\xff")[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert code(bytes(2049))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert code(b"") == (grpc.StatusCode.INVALID_ARGUMENT, "subject.id: must not be empty")
        stranger = request(tenant="stranger").SerializeToString()
        assert code(stranger)[0] is grpc.StatusCode.PERMISSION_DENIED
        batch = decision_pb2.EvaluateBatchRequest(requests=[request()] * 101).SerializeToString()
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/EvaluateBatch")(batch, timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert evaluate(satisfied().SerializeToString(), timeout=5)


@pytest.mark.parametrize("diagnose", [True, False])
def test_explanation_is_for_callers_that_may_diagnose(stock: Stock, tmp_path: Path, diagnose: bool) -> None:
    with worker(tmp_path, SIDESTEP_DIAGNOSE=str(diagnose).lower()) as started, asking(started.grpc) as stub:
        response = stub.Evaluate(request(explain=True), timeout=5)
        assert response.HasField("explanation") is diagnose
        assert not stub.Evaluate(request(), timeout=5).HasField("explanation")


def test_written_revocation_is_read_by_who_asks_for_it(stock: Stock, tmp_path: Path) -> None:
    in_time = 0
    with worker(tmp_path) as started, asking(started.grpc) as stub:
        for state, outcome in (
            ("SUBJECT_STATE_DISABLED", decision_pb2.OUTCOME_DENY),
            ("SUBJECT_STATE_ACTIVE", decision_pb2.OUTCOME_ALLOW),
        ) * 10:
            ahead = {"epoch": stock.urgent.epoch, "revision": stock.urgent.revision + 1}
            future = stub.Evaluate.future(satisfied(min_revision=ahead), timeout=5)
            stock.put(**{"subjects/bob": {"state": state}})
            response = future.result()
            if response.basis == decision_pb2.BASIS_FAIL_SAFE:
                continue  # writing took longer than the call may wait
            assert (response.outcome, response.data.urgent.revision) == (outcome, ahead["revision"])
            in_time += 1
    assert in_time > 0


class Load:
    """Clients that ask without pause and note what they were answered."""

    def __init__(self, target: str, clients: int = 4) -> None:
        self.answered: set[str] = set()
        self.failures: list[grpc.StatusCode] = []
        self._target = target
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        question = satisfied()
        with asking(self._target) as stub:
            while not self._stop.is_set():
                try:
                    self.answered.add(stub.Evaluate(question, timeout=5).decision_id)
                except grpc.RpcError as error:
                    self.failures.append(error.code())
                    self._stop.wait(0.005)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_killed_worker_has_recorded_all_it_answered(stock: Stock, tmp_path: Path, transport: str) -> None:
    settings = {"SIDESTEP_TRANSPORT": transport, "SIDESTEP_LISTEN": f"unix://{tmp_path}/run/s.sock"}
    load = Load(f"unix:{tmp_path}/run/s.sock")
    try:
        for round_ in range(1, 4):
            # Restarted over the socket file that the killed one left.
            with worker(tmp_path, **settings) as started:
                until(lambda wanted=round_ * 100: len(load.answered) >= wanted, "answers")
                started.kill()
    finally:
        load.stop()
    assert load.answered <= recorded_ids(tmp_path / "journal")
    assert set(load.failures) <= {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_drain_answers_what_it_has_taken_and_refuses_the_rest(stock: Stock, tmp_path: Path, transport: str) -> None:
    with worker(tmp_path, SIDESTEP_TRANSPORT=transport, SIDESTEP_SHUTDOWN_GRACE="4s") as started:
        load = Load(started.grpc)
        try:
            until(lambda: len(load.answered) >= 100, "answers")
            assert started.stop() == 0
        finally:
            load.stop()
        assert recorded_ids(tmp_path / "journal") == load.answered
        assert set(load.failures) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_journal_at_its_bound_stops_exemptions_or_in_strict_mode_everything(stock: Stock, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    (journal / f"{worker_name(0)}-000000000001-00000001.seg").write_bytes(bytes(2 << 20))
    with worker(tmp_path, SIDESTEP_JOURNAL_MAX="1MiB") as started, asking(started.grpc) as stub:
        assert stub.Evaluate(exempted(), timeout=5).outcome == decision_pb2.OUTCOME_STEP_UP
        assert stub.Evaluate(satisfied(), timeout=5).outcome == decision_pb2.OUTCOME_ALLOW
        assert started.slot.get(WorkerWord.UNRECORDED) == 2
    with (
        worker(tmp_path, SIDESTEP_JOURNAL_MAX="1MiB", SIDESTEP_JOURNAL_STRICT="true") as strict,
        asking(strict.grpc) as stub,
        pytest.raises(grpc.RpcError) as caught,
    ):
        stub.Evaluate(satisfied(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_worker_with_a_hung_loop_stops_beating(stock: Stock, tmp_path: Path) -> None:
    odd = (sys.executable, "-m", "tests.fakes.odd_worker")
    with worker(tmp_path, command=odd) as started, asking(started.grpc) as stub:
        assert stub.Evaluate(request(), timeout=5).decision_id
        (tmp_path / "hang").touch()
        hung = stub.Evaluate.future(request(), timeout=30)
        until(lambda: boottime_ms() - started.slot.get(Word.HEARTBEAT_MS) > 1500, "silence")
        assert started.process.poll() is None
        (tmp_path / "hang").unlink()
        assert hung.result().decision_id
        until(lambda: boottime_ms() - started.slot.get(Word.HEARTBEAT_MS) < 1000, "a heartbeat")


def test_idle_worker_beats(stock: Stock, tmp_path: Path) -> None:
    with worker(tmp_path) as started:
        first = started.slot.get(Word.HEARTBEAT_MS)
        until(lambda: started.slot.get(Word.HEARTBEAT_MS) > first + 500, "heartbeats")


def test_workers_share_a_port_and_have_a_socket_each(stock: Stock, tmp_path: Path) -> None:
    settings = {"SIDESTEP_WORKERS": "2", "SIDESTEP_LISTEN": f"127.0.0.1:0,unix://{tmp_path}/run/s.sock"}
    with worker(tmp_path, 0, **settings) as first, worker(tmp_path, 1, **settings) as second:
        assert first.targets()[0] == second.targets()[0]
        assert (tmp_path / "run" / "s-1.sock").exists()
        for _ in range(40):
            with asking(first.targets()[0]) as stub:
                stub.Evaluate(request(), timeout=5)
        assert _decisions(first) + _decisions(second) == 40
        assert _decisions(first)
        assert _decisions(second)


def _decisions(started: Worker) -> int:
    return sum(started.slot.get(WorkerWord.DECISIONS, index) for index in range(28))


def test_reflection_is_there_when_it_is_switched_on(stock: Stock, tmp_path: Path) -> None:
    with worker(tmp_path, SIDESTEP_REFLECTION="true") as started, connected(started.grpc) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        (response,) = stub.ServerReflectionInfo(iter([question]), timeout=5)
        names = {service.name for service in response.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names


def test_listener_that_cannot_be_opened_is_told_and_ends_the_worker(stock: Stock, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with (
        pytest.raises(AssertionError, match="mode 0777"),
        worker(tmp_path, SIDESTEP_LISTEN=f"127.0.0.1:0,unix://{tmp_path}/open/s.sock"),
    ):
        pass


def test_counters_go_on_after_a_restart(stock: Stock, tmp_path: Path) -> None:
    for rounds in (1, 2):
        with worker(tmp_path) as started, asking(started.grpc) as stub:
            stub.Evaluate(request(), timeout=5)
            until(lambda wanted=rounds: _decisions(started) == wanted, "the count")


def test_answers_come_in_time_or_fail_safe(stock: Stock, tmp_path: Path) -> None:
    with worker(tmp_path) as started, asking(started.grpc) as stub:
        ahead = {"epoch": stock.urgent.epoch, "revision": stock.urgent.revision + 1}
        begun = time.monotonic()
        response = stub.Evaluate(satisfied(min_revision=ahead), timeout=5)
        assert response.basis == decision_pb2.BASIS_FAIL_SAFE
        assert time.monotonic() - begun < 2
        assert read_journal(tmp_path / "journal")[-1].facts.data.behind


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_was_never_spent_cannot_be_settled(stock: Stock, tmp_path: Path, transport: str) -> None:
    with worker(tmp_path, SIDESTEP_TRANSPORT=transport) as started, asking(started.grpc) as stub:
        decision = stub.Evaluate(exempted(), timeout=5).decision_id
        for decision_id, code in ((decision, grpc.StatusCode.NOT_FOUND), ("x", grpc.StatusCode.INVALID_ARGUMENT)):
            with pytest.raises(grpc.RpcError) as error:
                stub.Settle(decision_pb2.SettleRequest(decision_id=decision_id, settlement=1), timeout=5)
            assert error.value.code() is code  # type: ignore[attr-defined]
