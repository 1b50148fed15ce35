"""Reporting a finished step-up: what goes into the request, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypedDict

import grpc
from sidestep.client._errors import ReportError
from sidestep.client._question import Dpop
from sidestep.v1 import decision_pb2

REPORT: Final = "/sidestep.v1.DecisionService/ReportAuthentication"
REPORT_TIMEOUT_S: Final = 2.0
"""How long reporting may take unless it says otherwise."""
_RETRYABLE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class ReportFields(TypedDict, total=False):
    """The optional fields of `report_authentication`."""

    tenant: str
    session_id: str
    dpop: Dpop | None
    device_id: str
    fingerprint: Mapping[str, str]
    register_device: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedAuthentication:
    """A finished step-up as it counts from now on. `acr`: empty if it is more than its issuer may claim. `authenticated_at`: Unix
    seconds. `session`, `device`: what it counts for; empty: none. `registering`: the control plane was asked to register the
    device, and has the last word."""

    acr: str
    authenticated_at: float
    session: str = ""
    device: str = ""
    registering: bool = False


def to_report_request(subject: str, token: str, fields: ReportFields) -> decision_pb2.ReportAuthenticationRequest:
    """The request. Raises TypeError for a field there is none of, or of another type."""
    unknown = fields.keys() - ReportFields.__annotations__.keys()
    if unknown:
        raise TypeError(f"report_authentication() has no {', '.join(sorted(unknown))}")
    for name, value in (("subject", subject), ("token", token)):
        if not isinstance(value, str):
            raise TypeError(f"{name}: str needed, not {type(value).__name__}")
    request = decision_pb2.ReportAuthenticationRequest(
        tenant=fields.get("tenant", ""),
        subject=decision_pb2.SubjectRef(id=subject),
        token=token,
        session_id=fields.get("session_id", ""),
        register=fields.get("register_device", False),
    )
    device = decision_pb2.DeviceEvidence(id=fields.get("device_id", ""), fingerprint=fields.get("fingerprint", {}))
    if device != decision_pb2.DeviceEvidence():
        request.device.CopyFrom(device)
    dpop = fields.get("dpop")
    if dpop is not None:
        proof, method, uri = dpop
        request.dpop.CopyFrom(decision_pb2.DpopProof(proof=proof, http_method=method, http_uri=uri))
    return request


def from_report_response(response: decision_pb2.ReportAuthenticationResponse) -> ReportedAuthentication:
    """What the sidecar answered."""
    at = response.authentication.auth_time
    return ReportedAuthentication(
        acr=response.authentication.acr,
        authenticated_at=at.seconds + at.nanos / 1e9,
        session=response.session,
        device=response.device,
        registering=response.registering,
    )


def report_error(code: grpc.StatusCode, details: str | None) -> ReportError:
    """Why a step-up could not be reported."""
    return ReportError(
        f"{code.name}: {details or ''}",
        retryable=code in _RETRYABLE,
        already_used=code is grpc.StatusCode.ALREADY_EXISTS,
    )
