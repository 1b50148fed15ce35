"""Every vector against a real worker process, over gRPC; the store changes under it from one vector to the next."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import UUID

import grpc
import pytest
from sidestep.v1 import decision_pb2, decision_pb2_grpc

from sidecar.journal.reader import SegmentReader
from sidecar.journal.record import Record, decode_record
from sidecar.journal.segment import SegmentName, list_segments
from tests.conformance import requests
from tests.conformance.replica import Replica
from tests.conformance.vectors import Report, Vector, fixture, for_runner
from tests.conformance.verdict import Verdict, differences, matches, of_response
from tests.conformance.worker_process import clock_file, set_clock
from tests.processes import worker

_COMMAND = (sys.executable, "-m", "tests.conformance.worker_process")
_DEADLINE_S = 10.0
_FULL = 1


class Workers:
    """Two workers over one store: the journal of the second is at its bound from the start."""

    def __init__(self, data_dir: Path, running: ExitStack) -> None:
        base = fixture()
        self.replica = Replica(data_dir)
        self.journal = data_dir / "journal"
        # Outcome and basis of what the worker with a journal answered, by decision id.
        self.answered: dict[str, tuple[str, str]] = {}
        running.callback(self.replica.close)
        self._clock = clock_file(data_dir)
        self._round = 0
        self._set_clock()
        self._fill_journal()
        self._stubs = []
        for index, journal_max in enumerate(("64MiB", "2MiB")):
            started = running.enter_context(
                worker(
                    data_dir,
                    index,
                    command=_COMMAND,
                    SIDESTEP_TENANT=base["default_tenant"],
                    SIDESTEP_SOFT_STALE=base["soft_stale"],
                    SIDESTEP_HARD_STALE=base["hard_stale"],
                    # That it is set is all a worker looks at: time is held against the signed one.
                    SIDESTEP_TRUSTED_KEYS=str(data_dir / "trusted.pem"),
                    SIDESTEP_WORKERS="2",
                    SIDESTEP_DIAGNOSE="true",
                    SIDESTEP_JOURNAL_MAX=journal_max,
                )
            )
            channel = running.enter_context(grpc.insecure_channel(started.grpc))
            self._stubs.append(decision_pb2_grpc.DecisionServiceStub(channel))  # type: ignore[no-untyped-call]

    def answer(self, vector: Vector) -> Verdict | tuple[str, str]:
        """The decision, or the error as (gRPC code, details)."""
        self._round += 1
        stub = self._stubs[_FULL if vector.journal_full else 0]
        for earlier in vector.before:
            with suppress(grpc.RpcError):
                self._ask(stub, earlier)
        for number, report in enumerate(vector.reports):
            came_to = self._report(stub, vector, report)
            assert matches(report.expect, came_to), f"report {number} came to {came_to}"
        try:
            response = self._ask(stub, vector)
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
        tenant = vector.request.get("tenant", fixture()["default_tenant"])
        verdict = of_response(response, tenant)
        if not vector.journal_full:
            assert response.decision_id not in self.answered
            self.answered[response.decision_id] = verdict.outcome, verdict.basis
        return verdict

    def _ask(self, stub: decision_pb2_grpc.DecisionServiceStub, vector: Vector) -> decision_pb2.EvaluateResponse:
        self.replica.change(vector)
        self._set_clock()
        tenant = vector.request.get("tenant", fixture()["default_tenant"])
        request = requests.build(vector, self.replica.head(tenant))
        request.explain = True
        response: decision_pb2.EvaluateResponse = stub.Evaluate(request, timeout=_DEADLINE_S)
        return response

    def _report(
        self, stub: decision_pb2_grpc.DecisionServiceStub, vector: Vector, report: Report
    ) -> dict[str, str | bool]:
        """What a report comes to, in the terms of the vectors."""
        self.replica.change(vector)
        self.replica.clock.now = report.now.timestamp()
        self._set_clock()
        try:
            taken = stub.ReportAuthentication(requests.build_report(report), timeout=_DEADLINE_S)
        except grpc.RpcError as error:
            return {"code": error.code().name, "says": error.details() or ""}
        stated = {"session": taken.session, "device": taken.device, "registering": taken.registering}
        return {"acr": taken.authentication.acr, **{name: value for name, value in stated.items() if value}}

    def recorded(self) -> dict[str, Record]:
        """The journal of the worker that has one, by decision id."""
        records = {}
        for segment in list_segments(self.journal):
            if segment.worker == 0:
                reader = SegmentReader(self.journal / str(segment))
                while entries := reader.read(1000):
                    for entry in entries:
                        record = decode_record(entry.payload)
                        assert isinstance(record, Record)
                        records[str(UUID(bytes=record.decision_id))] = record
                reader.close()
        return records

    def _set_clock(self) -> None:
        set_clock(self._clock, self.replica.clock.wall(), self.replica.clock.boottime(), self._round)

    def _fill_journal(self) -> None:
        """A segment of an earlier start, as large as the bound. It has no content, since nobody ships it here."""
        self.journal.mkdir()
        with (self.journal / str(SegmentName("w", _FULL, 1, 0))).open("wb") as segment:
            segment.truncate(1 << 20)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with ExitStack() as running:
        yield Workers(tmp_path_factory.mktemp("sidecar"), running)


@pytest.mark.parametrize("vector", for_runner("worker"), ids=lambda vector: vector.id)
def test_worker_conforms(workers: Workers, vector: Vector) -> None:
    answer = workers.answer(vector)
    if isinstance(answer, Verdict):
        assert not (found := differences(vector, answer)), "\n".join(found)
    else:
        code, details = answer
        expected = vector.expect.get("error", {})
        assert code == expected.get("code"), details
        if "field" in expected:
            assert details.startswith(f"{expected['field']}: "), details


def test_every_answer_is_recorded_as_given(workers: Workers) -> None:
    workers.answer(for_runner("worker")[0])
    workers.answer(next(vector for vector in for_runner("worker") if vector.expect.get("outcome") == "ALLOW"))

    records = workers.recorded()

    assert workers.answered
    told = {
        decision_id: (records[decision_id].decision.outcome.value, records[decision_id].decision.basis.value)
        for decision_id in workers.answered
    }
    assert told == workers.answered
