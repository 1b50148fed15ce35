"""From the request of a vector to an EvaluateRequest."""

from __future__ import annotations

from google.protobuf.json_format import ParseDict
from sidestep.v1 import decision_pb2

from sidecar.store.view import Cursor
from tests.conformance import tokens
from tests.conformance.vectors import Report, Vector, resolve


def build(vector: Vector, head: Cursor | None) -> decision_pb2.EvaluateRequest:
    """The request, with `min_revision` counted from where the tenant's urgent lane stands."""
    body = resolve(vector.request, vector.now)
    session = body.get("session", {})
    if isinstance(session.get("token"), dict):
        session["token"] = tokens.token(vector.request["session"]["token"], vector.now)
    if isinstance(session.get("dpop"), dict):
        session["dpop"] = tokens.dpop(vector.request["session"]["dpop"], session.get("token", ""), vector.now)
    if vector.min_revision is not None:
        assert head is not None, "min_revision needs a loaded tenant"
        body["min_revision"] = {
            "epoch": head.epoch + vector.min_revision["epoch"],
            "revision": head.revision + vector.min_revision["revision"],
        }
    return ParseDict(body, decision_pb2.EvaluateRequest())


def build_report(report: Report) -> decision_pb2.ReportAuthenticationRequest:
    """The report of a vector."""
    body = resolve(report.request, report.now)
    if isinstance(body.get("token"), dict):
        body["token"] = tokens.token(report.request["token"], report.now)
    if isinstance(body.get("dpop"), dict):
        body["dpop"] = tokens.dpop(report.request["dpop"], body.get("token", ""), report.now)
    return ParseDict(body, decision_pb2.ReportAuthenticationRequest())
