"""A caller's trace shows the decision as its child: OpenTelemetry's SDK in the caller, a real sidecar, a real receiver.

Sampled or not: the caller's sampling decides what the caller exports, never what is recorded of a decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace.span import SpanContext, TraceFlags, TraceState
from sidestep.client import AsyncClient, Client, Decision, Question
from sidestep.v1 import decision_pb2, decision_pb2_grpc

from tests.fakes.exported import DECISION_ID
from tests.fakes.otlp import OtlpReceiver, attributes
from tests.fakes.stock import Stock, request
from tests.processes import PATIENCE_S, sidecar, until

SERVER, INTERNAL = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL
# Of Span.flags; the lowest eight are those of W3C Trace Context.
REMOTE_KNOWN, REMOTE = 0x100, 0x200
STATE = TraceState([("vendor", "t61rcWkgMzE"), ("ot", "th:c;rv:6e6d1a75832a2f")])
QUESTION = Question(subject="bob", action="payments.transfer")

Ask = Callable[..., Sequence[Decision]]


class Pod:
    """A running sidecar, and what its collector got."""

    def __init__(self, address: str, receiver: OtlpReceiver) -> None:
        self.address = address
        self._receiver = receiver

    def span_of(self, decision: Decision) -> Span:
        """The decision's span, once it has come."""
        assert decision.error is None
        return self._find(lambda span: attributes(span).get(DECISION_ID) == decision.decision_id)

    def span_with_id(self, span_id: bytes) -> Span:
        """The span of that id, once it has come."""
        return self._find(lambda span: span.span_id == span_id)

    def _find(self, wanted: Callable[[Span], bool]) -> Span:
        found: Span = until(lambda: next(filter(wanted, self._receiver.spans), None), "the span")
        return found


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    data = tmp_path_factory.mktemp("sidecar")
    stock = Stock(data)
    stock.load()
    stock.close()
    with OtlpReceiver() as receiver:
        settings = {
            "SIDESTEP_JOURNAL_SINK": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{receiver.endpoint}",
            "OTEL_METRICS_EXPORTER": "none",
        }
        with sidecar(data, **settings) as running:
            yield Pod(running.grpc, receiver)


def ask_sync(address: str, count: int = 0, **options: str) -> Sequence[Decision]:
    """One question, or a batch of `count`."""
    with Client(address, timeout_s=PATIENCE_S) as client:
        if count:
            return client.evaluate_batch([QUESTION] * count, **options)
        return [client.evaluate(QUESTION, **options)]


def ask_async(address: str, count: int = 0, **options: str) -> Sequence[Decision]:
    """As ask_sync, by the client for asyncio."""

    async def ask() -> Sequence[Decision]:
        async with AsyncClient(address, timeout_s=PATIENCE_S) as client:
            if count:
                return await client.evaluate_batch([QUESTION] * count, **options)
            return [await client.evaluate(QUESTION, **options)]

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [ask_sync, ask_async], ids=["sync", "async"])
sampling = pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "unsampled"])


class Caller:
    """A service traced by the SDK."""

    def __init__(self, *, sampled: bool) -> None:
        self._exported = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(ALWAYS_ON if sampled else ALWAYS_OFF))
        self.provider.add_span_processor(SimpleSpanProcessor(self._exported))
        self._tracer = self.provider.get_tracer("caller")

    @contextmanager
    def working(self, parent: SpanContext | None = None) -> Iterator[SpanContext]:
        """Inside a span of the caller."""
        context = None if parent is None else trace.set_span_in_context(trace.NonRecordingSpan(parent))
        with self._tracer.start_as_current_span("POST /transfers", context=context) as span:
            yield span.get_span_context()

    def exported(self) -> int:
        """How many spans its own exporter got."""
        return len(self._exported.get_finished_spans())


@pytest.fixture
def caller(sampled: bool) -> Iterator[Caller]:
    caller = Caller(sampled=sampled)
    yield caller
    caller.provider.shutdown()


def is_child(span: Span, parent: SpanContext, *, sampled: bool) -> bool:
    """Whether it is the child of that span, in its trace, of a parent in another process, with its flags."""
    assert bool(parent.trace_flags & TraceFlags.SAMPLED) is sampled
    return (
        span.trace_id == parent.trace_id.to_bytes(16, "big")
        and span.parent_span_id == parent.span_id.to_bytes(8, "big")
        and span.flags == REMOTE_KNOWN | REMOTE | parent.trace_flags
        and span.kind == SERVER
    )


@both
@sampling
def test_a_decision_is_the_callers_child(pod: Pod, caller: Caller, ask: Ask, sampled: bool) -> None:
    with caller.working() as parent:
        (decision,) = ask(pod.address)
    assert is_child(pod.span_of(decision), parent, sampled=sampled)
    assert caller.exported() == (1 if sampled else 0)


@both
@sampling
def test_a_batch_is_the_callers_child_and_its_decisions_are_the_batchs(
    pod: Pod, caller: Caller, ask: Ask, sampled: bool
) -> None:
    with caller.working() as parent:
        decisions = ask(pod.address, 20)
    spans = [pod.span_of(decision) for decision in decisions]
    assert len({span.span_id for span in spans}) == len(decisions) == 20
    (batch_id,) = {span.parent_span_id for span in spans}
    batch = pod.span_with_id(batch_id)
    assert batch.name == "sidestep.v1.DecisionService/EvaluateBatch"
    assert is_child(batch, parent, sampled=sampled)
    assert attributes(batch)["sidestep.batch.size"] == 20
    for span in spans:
        assert span.trace_id == batch.trace_id
        assert span.kind == INTERNAL
        # The parent of a decision in a batch is the sidecar's own.
        assert span.flags & (REMOTE_KNOWN | REMOTE) == REMOTE_KNOWN
        assert batch.start_time_unix_nano <= span.start_time_unix_nano


@both
@sampling
def test_a_tracestate_does_not_get_in_the_way(pod: Pod, caller: Caller, ask: Ask, sampled: bool) -> None:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    far = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True, flags, STATE)
    with caller.working(far) as parent:
        assert parent.trace_id == far.trace_id
        assert parent.trace_state == STATE
        (decision,) = ask(pod.address)
    assert is_child(pod.span_of(decision), parent, sampled=sampled)


@both
def test_without_a_trace_a_decision_is_its_own(pod: Pod, ask: Ask) -> None:
    (decision,) = ask(pod.address)
    assert is_root(pod.span_of(decision), decision.decision_id)


@both
def test_a_traceparent_that_is_handed_over_counts_before_the_current_span(pod: Pod, ask: Ask) -> None:
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    caller = Caller(sampled=True)
    with caller.working():
        (decision,) = ask(pod.address, traceparent=given)
        (left_out,) = ask(pod.address, traceparent="")
    span = pod.span_of(decision)
    assert span.trace_id.hex() == given[3:35]
    assert span.parent_span_id.hex() == given[36:52]
    assert is_root(pod.span_of(left_out), left_out.decision_id)
    caller.provider.shutdown()


@pytest.mark.parametrize(
    "traceparent",
    [
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "01-" + "x" * 4000,
        "not a traceparent",
    ],
)
def test_an_invalid_traceparent_is_ignored(pod: Pod, traceparent: str) -> None:
    # Sent by other clients than ours, which leaves out most of these.
    metadata = (("traceparent", traceparent), ("tracestate", "=,,=" + "é".encode().hex()))
    with grpc.insecure_channel(pod.address) as channel:
        stub = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
        answer: decision_pb2.EvaluateResponse = stub.Evaluate(request("bob"), timeout=PATIENCE_S, metadata=metadata)
    span = pod.span_with_id(UUID(answer.decision_id).bytes[8:])
    assert is_root(span, answer.decision_id)


def is_root(span: Span, decision_id: str) -> bool:
    """Whether it begins a trace of its own, under the decision's id."""
    return span.trace_id == UUID(decision_id).bytes and not span.parent_span_id and span.kind == SERVER


def test_threads_keep_their_own_traces(pod: Pod) -> None:
    caller = Caller(sampled=True)
    with Client(pod.address, timeout_s=PATIENCE_S) as client, ThreadPoolExecutor(8) as pool:

        def work(_: int) -> tuple[SpanContext, Decision]:
            with caller.working() as parent:
                return parent, client.evaluate(QUESTION)

        done = list(pool.map(work, range(40)))
    assert len({parent.trace_id for parent, _ in done}) == 40
    assert all(is_child(pod.span_of(decision), parent, sampled=True) for parent, decision in done)
    caller.provider.shutdown()


def test_tasks_keep_their_own_traces(pod: Pod) -> None:
    caller = Caller(sampled=False)

    async def work(client: AsyncClient) -> tuple[SpanContext, Decision]:
        with caller.working() as parent:
            return parent, await client.evaluate(QUESTION)

    async def all_at_once() -> list[tuple[SpanContext, Decision]]:
        async with AsyncClient(pod.address, timeout_s=PATIENCE_S) as client:
            return await asyncio.gather(*(work(client) for _ in range(40)))

    done = asyncio.run(all_at_once())
    assert len({parent.trace_id for parent, _ in done}) == 40
    assert all(is_child(pod.span_of(decision), parent, sampled=False) for parent, decision in done)
    caller.provider.shutdown()
