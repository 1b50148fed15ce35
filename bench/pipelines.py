"""The two ways from a decision to the collector, each part to be run in a process of its own. All return CPU seconds."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from sidecar.front.decision_id import DecisionIds, id_text
from sidecar.journal.chain import HASH_BYTES
from sidecar.journal.export import open_exporter
from sidecar.journal.record import Record, decode_record, encode_record
from sidecar.journal.segment import SegmentWriter, worker_name
from sidecar.journal.ship import Shipper
from sidecar.journal.span import encode_resource, encode_span
from sidecar.otel import Otlp
from sidecar.page import AgentWord, Page

RESOURCE = {"service.name": "sidestep", "service.version": "1", "service.instance.id": "pod-1"}
_BYTES = 1 << 30
# Spans the SDK sends at once, and our shipper too.
_EXPORT = 512
# What the record carries in the span, which the SDK's user has no use for.
_OURS = {"sidestep.record", "sidestep.journal.hash"}


def worker(folder: Path, samples: list[bytes], decisions: int, batch: int, pace: int) -> float:
    """Records decisions, `batch` in one write; `pace` of them a second, 0: without a break."""
    drafts = [record for record in map(decode_record, samples) if isinstance(record, Record)]
    ids = _ids(decisions)
    journal = SegmentWriter(folder / "journal", worker_name(0), _BYTES)
    gc.collect()
    gc.freeze()
    begun = time.process_time()
    for first in _paced(decisions, batch, pace):
        records = []
        for number in range(first, min(first + batch, decisions)):
            draft = drafts[number % len(drafts)]
            record = Record(
                decision_id=ids[number],
                at=draft.at,
                duration_us=draft.duration_us,
                facts=draft.facts,
                decision=draft.decision,
                request_id=draft.request_id,
                traceparent=draft.traceparent,
                caller=draft.caller,
                user_hash=draft.user_hash,
                user_id=draft.user_id,
                client_address=draft.client_address,
                withheld=draft.withheld,
            )
            records.append(encode_record(record))
        journal.append(records)
    spent_s = time.process_time() - begun
    journal.close()
    return spent_s


def agent(folder: Path, address: str, decisions: int) -> float:
    """Ships so many records, also while they are being written."""
    return asyncio.run(_agent(folder, address, decisions))


async def _agent(folder: Path, address: str, decisions: int) -> float:
    page = Page.create(folder / "page", 1)
    exporter = open_exporter(Otlp(endpoint=address), "traces")
    gc.collect()
    gc.freeze()
    begun = time.process_time()
    resource = encode_resource(RESOURCE)
    shipper = Shipper(folder / "journal", exporter, page.agent, resource=resource, quarantine_bytes=_BYTES)
    while page.agent.get(AgentWord.JOURNAL_SHIPPED) < decisions:
        pause_s = await shipper.step()
        if pause_s:
            await asyncio.sleep(pause_s)
    spent_s = time.process_time() - begun
    shipper.close()
    await exporter.close()
    return spent_s


def stock(address: str, samples: list[bytes], decisions: int, pace: int) -> float:
    """Spans by the SDK, in the process that decides."""
    exporter = OTLPSpanExporter(endpoint=f"http://{address}", insecure=True)
    processor = BatchSpanProcessor(exporter, max_export_batch_size=_EXPORT, max_queue_size=8 * _EXPORT)
    provider = TracerProvider(resource=Resource(RESOURCE), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("sidestep")
    drafts = [_attributes(sample) for sample in samples]
    caller = trace.SpanContext(os.getpid() << 64 | 1, 1, True, trace.TraceFlags(trace.TraceFlags.SAMPLED))
    context = trace.set_span_in_context(trace.NonRecordingSpan(caller))
    ids = _ids(decisions)
    gc.collect()
    gc.freeze()
    begun = time.process_time()
    for number in _paced(decisions, 1, pace):
        attributes = drafts[number % len(drafts)] | {
            "sidestep.decision.id": id_text(ids[number]),
            "sidestep.journal.seq": number,
        }
        span = tracer.start_span(
            "sidestep.v1.DecisionService/Evaluate", context, kind=trace.SpanKind.SERVER, attributes=attributes
        )
        span.end()
        if not pace and number % _EXPORT == _EXPORT - 1:
            processor.force_flush()  # its queue would overflow, and drop spans
    provider.shutdown()
    return time.process_time() - begun


def idle(decisions: int, pace: int) -> float:
    """What keeping the pace costs by itself."""
    begun = time.process_time()
    for _ in _paced(decisions, 1, pace):
        pass
    return time.process_time() - begun


def _paced(end: int, step: int, pace: int) -> Iterator[int]:
    """`range(0, end, step)`, each when it is due."""
    if not pace:
        yield from range(0, end, step)
        return
    begun = time.monotonic()
    for number in range(0, end, step):
        due_in_s = begun + number / pace - time.monotonic()
        if due_in_s > 0:
            time.sleep(due_in_s)
        yield number


def _ids(count: int) -> list[bytes]:
    ids = DecisionIds()
    return [ids.next() for _ in range(count)]


def _attributes(sample: bytes) -> dict[str, Any]:
    """What the SDK is given for a record: the attributes its span has, but those that carry the record itself."""
    (span,) = trace_pb2.ScopeSpans.FromString(encode_span(sample, "w0-000000000000", 0, bytes(HASH_BYTES))).spans
    return {pair.key: _plain(pair.value) for pair in span.attributes if pair.key not in _OURS}


def _plain(value: AnyValue) -> Any:
    if value.HasField("array_value"):
        return [_plain(item) for item in value.array_value.values]
    return getattr(value, str(value.WhichOneof("value")))
