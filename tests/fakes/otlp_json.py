"""Exported spans as the collector's file exporter writes them: OTLP JSON, made by protobuf's own JSON encoding."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sidecar.journal.reader import Entry
from sidecar.journal.span import encode_request, encode_resource, encode_span


def otlp_json(request: ExportTraceServiceRequest) -> dict[str, Any]:
    """Protobuf's JSON with the exceptions OTLP makes: ids are hexadecimal, enums are numbers."""
    document: dict[str, Any] = MessageToDict(request, use_integers_for_enums=True)
    for group in document.get("resourceSpans", ()):
        for scope in group.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in span:
                        span[key] = base64.b64decode(span[key]).hex()
    return document


def export_request(
    entries: Iterable[tuple[str, Entry]], sidecar: str = "pod-1", **attributes: str
) -> ExportTraceServiceRequest:
    """What the shipper makes of records, each with the name of its chain."""
    spans = [encode_span(entry.payload, chain, entry.sequence, entry.hash) for chain, entry in entries]
    resource = encode_resource({"service.name": "sidestep", "service.instance.id": sidecar, **attributes})
    return ExportTraceServiceRequest.FromString(encode_request(spans, resource))


def write_lines(path: Path, requests: Iterable[ExportTraceServiceRequest]) -> None:
    """One request per line."""
    path.write_text("".join(json.dumps(otlp_json(request), separators=(",", ":")) + "\n" for request in requests))
