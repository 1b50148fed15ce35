import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sidestep.v1 import lease_pb2 as _lease_pb2
from sidestep.v1 import report_pb2 as _report_pb2
from sidestep.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_ALLOW: _ClassVar[Outcome]
    OUTCOME_STEP_UP: _ClassVar[Outcome]
    OUTCOME_DENY: _ClassVar[Outcome]

class Basis(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BASIS_UNSPECIFIED: _ClassVar[Basis]
    BASIS_NOT_REQUIRED: _ClassVar[Basis]
    BASIS_ASSURANCE_SATISFIED: _ClassVar[Basis]
    BASIS_EXEMPTION_GRANT: _ClassVar[Basis]
    BASIS_CHALLENGE: _ClassVar[Basis]
    BASIS_BLOCKED: _ClassVar[Basis]
    BASIS_FAIL_SAFE: _ClassVar[Basis]

class CoarseReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COARSE_REASON_UNSPECIFIED: _ClassVar[CoarseReason]
    COARSE_REASON_NOTHING_REQUIRED: _ClassVar[CoarseReason]
    COARSE_REASON_REQUIREMENT_MET: _ClassVar[CoarseReason]
    COARSE_REASON_EXEMPTED: _ClassVar[CoarseReason]
    COARSE_REASON_AUTHENTICATION_NEEDED: _ClassVar[CoarseReason]
    COARSE_REASON_SESSION_INVALID: _ClassVar[CoarseReason]
    COARSE_REASON_BLOCKED: _ClassVar[CoarseReason]
    COARSE_REASON_DATA_UNAVAILABLE: _ClassVar[CoarseReason]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_ALLOW: Outcome
OUTCOME_STEP_UP: Outcome
OUTCOME_DENY: Outcome
BASIS_UNSPECIFIED: Basis
BASIS_NOT_REQUIRED: Basis
BASIS_ASSURANCE_SATISFIED: Basis
BASIS_EXEMPTION_GRANT: Basis
BASIS_CHALLENGE: Basis
BASIS_BLOCKED: Basis
BASIS_FAIL_SAFE: Basis
COARSE_REASON_UNSPECIFIED: CoarseReason
COARSE_REASON_NOTHING_REQUIRED: CoarseReason
COARSE_REASON_REQUIREMENT_MET: CoarseReason
COARSE_REASON_EXEMPTED: CoarseReason
COARSE_REASON_AUTHENTICATION_NEEDED: CoarseReason
COARSE_REASON_SESSION_INVALID: CoarseReason
COARSE_REASON_BLOCKED: CoarseReason
COARSE_REASON_DATA_UNAVAILABLE: CoarseReason

class EvaluateRequest(_message.Message):
    __slots__ = ("tenant", "request_id", "subject", "action", "resource", "context", "session", "device", "min_revision", "explain")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MIN_REVISION_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    request_id: str
    subject: SubjectRef
    action: Action
    resource: ResourceRef
    context: Context
    session: SessionEvidence
    device: DeviceEvidence
    min_revision: _resources_pb2.Revision
    explain: bool
    def __init__(self, tenant: _Optional[str] = ..., request_id: _Optional[str] = ..., subject: _Optional[_Union[SubjectRef, _Mapping]] = ..., action: _Optional[_Union[Action, _Mapping]] = ..., resource: _Optional[_Union[ResourceRef, _Mapping]] = ..., context: _Optional[_Union[Context, _Mapping]] = ..., session: _Optional[_Union[SessionEvidence, _Mapping]] = ..., device: _Optional[_Union[DeviceEvidence, _Mapping]] = ..., min_revision: _Optional[_Union[_resources_pb2.Revision, _Mapping]] = ..., explain: _Optional[bool] = ...) -> None: ...

class SubjectRef(_message.Message):
    __slots__ = ("id", "type")
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    id: str
    type: str
    def __init__(self, id: _Optional[str] = ..., type: _Optional[str] = ...) -> None: ...

class Action(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ResourceRef(_message.Message):
    __slots__ = ("type", "id")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    type: str
    id: str
    def __init__(self, type: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class Context(_message.Message):
    __slots__ = ("ip", "asn", "country", "amount", "attributes")
    IP_FIELD_NUMBER: _ClassVar[int]
    ASN_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    ip: str
    asn: int
    country: str
    amount: _resources_pb2.Amount
    attributes: _struct_pb2.Struct
    def __init__(self, ip: _Optional[str] = ..., asn: _Optional[int] = ..., country: _Optional[str] = ..., amount: _Optional[_Union[_resources_pb2.Amount, _Mapping]] = ..., attributes: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class SessionEvidence(_message.Message):
    __slots__ = ("id", "start_time", "last_active_time", "authentications", "token", "dpop")
    ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_ACTIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    AUTHENTICATIONS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DPOP_FIELD_NUMBER: _ClassVar[int]
    id: str
    start_time: _timestamp_pb2.Timestamp
    last_active_time: _timestamp_pb2.Timestamp
    authentications: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Authentication]
    token: str
    dpop: DpopProof
    def __init__(self, id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_active_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., authentications: _Optional[_Iterable[_Union[_resources_pb2.Authentication, _Mapping]]] = ..., token: _Optional[str] = ..., dpop: _Optional[_Union[DpopProof, _Mapping]] = ...) -> None: ...

class DpopProof(_message.Message):
    __slots__ = ("proof", "http_method", "http_uri")
    PROOF_FIELD_NUMBER: _ClassVar[int]
    HTTP_METHOD_FIELD_NUMBER: _ClassVar[int]
    HTTP_URI_FIELD_NUMBER: _ClassVar[int]
    proof: str
    http_method: str
    http_uri: str
    def __init__(self, proof: _Optional[str] = ..., http_method: _Optional[str] = ..., http_uri: _Optional[str] = ...) -> None: ...

class DeviceEvidence(_message.Message):
    __slots__ = ("id", "fingerprint")
    class FingerprintEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    id: str
    fingerprint: _containers.ScalarMap[str, str]
    def __init__(self, id: _Optional[str] = ..., fingerprint: _Optional[_Mapping[str, str]] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("decision_id", "outcome", "basis", "reason", "requirement", "achieved_acr", "waived_acrs", "challenge", "grant", "data", "explanation", "remaining")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUIREMENT_FIELD_NUMBER: _ClassVar[int]
    ACHIEVED_ACR_FIELD_NUMBER: _ClassVar[int]
    WAIVED_ACRS_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    outcome: Outcome
    basis: Basis
    reason: CoarseReason
    requirement: EffectiveRequirement
    achieved_acr: str
    waived_acrs: _containers.RepeatedScalarFieldContainer[str]
    challenge: Challenge
    grant: str
    data: DataVersion
    explanation: Explanation
    remaining: GrantRemaining
    def __init__(self, decision_id: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., basis: _Optional[_Union[Basis, str]] = ..., reason: _Optional[_Union[CoarseReason, str]] = ..., requirement: _Optional[_Union[EffectiveRequirement, _Mapping]] = ..., achieved_acr: _Optional[str] = ..., waived_acrs: _Optional[_Iterable[str]] = ..., challenge: _Optional[_Union[Challenge, _Mapping]] = ..., grant: _Optional[str] = ..., data: _Optional[_Union[DataVersion, _Mapping]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., remaining: _Optional[_Union[GrantRemaining, _Mapping]] = ...) -> None: ...

class GrantRemaining(_message.Message):
    __slots__ = ("count", "amount", "expire_time")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    count: int
    amount: _resources_pb2.Amount
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, count: _Optional[int] = ..., amount: _Optional[_Union[_resources_pb2.Amount, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class EffectiveRequirement(_message.Message):
    __slots__ = ("acrs", "max_age", "authenticated_after", "evidence")
    ACRS_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    AUTHENTICATED_AFTER_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    acrs: _containers.RepeatedScalarFieldContainer[str]
    max_age: _duration_pb2.Duration
    authenticated_after: _timestamp_pb2.Timestamp
    evidence: _resources_pb2.Evidence
    def __init__(self, acrs: _Optional[_Iterable[str]] = ..., max_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., authenticated_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., evidence: _Optional[_Union[_resources_pb2.Evidence, str]] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("methods", "acr_values", "max_age_s", "www_authenticate")
    METHODS_FIELD_NUMBER: _ClassVar[int]
    ACR_VALUES_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_S_FIELD_NUMBER: _ClassVar[int]
    WWW_AUTHENTICATE_FIELD_NUMBER: _ClassVar[int]
    methods: _containers.RepeatedCompositeFieldContainer[ChallengeMethod]
    acr_values: str
    max_age_s: int
    www_authenticate: str
    def __init__(self, methods: _Optional[_Iterable[_Union[ChallengeMethod, _Mapping]]] = ..., acr_values: _Optional[str] = ..., max_age_s: _Optional[int] = ..., www_authenticate: _Optional[str] = ...) -> None: ...

class ChallengeMethod(_message.Message):
    __slots__ = ("id", "acr", "amr")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACR_FIELD_NUMBER: _ClassVar[int]
    AMR_FIELD_NUMBER: _ClassVar[int]
    id: str
    acr: str
    amr: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., acr: _Optional[str] = ..., amr: _Optional[_Iterable[str]] = ...) -> None: ...

class DataVersion(_message.Message):
    __slots__ = ("urgent", "bulk", "age")
    URGENT_FIELD_NUMBER: _ClassVar[int]
    BULK_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    urgent: _resources_pb2.Revision
    bulk: _resources_pb2.Revision
    age: _duration_pb2.Duration
    def __init__(self, urgent: _Optional[_Union[_resources_pb2.Revision, _Mapping]] = ..., bulk: _Optional[_Union[_resources_pb2.Revision, _Mapping]] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("steps", "factors", "reasons", "smallest_change", "policies", "shadows")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_CHANGE_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    SHADOWS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[ExplainStep]
    factors: _containers.RepeatedCompositeFieldContainer[FactorReport]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    smallest_change: str
    policies: _containers.RepeatedScalarFieldContainer[str]
    shadows: _containers.RepeatedCompositeFieldContainer[ShadowDecision]
    def __init__(self, steps: _Optional[_Iterable[_Union[ExplainStep, _Mapping]]] = ..., factors: _Optional[_Iterable[_Union[FactorReport, _Mapping]]] = ..., reasons: _Optional[_Iterable[str]] = ..., smallest_change: _Optional[str] = ..., policies: _Optional[_Iterable[str]] = ..., shadows: _Optional[_Iterable[_Union[ShadowDecision, _Mapping]]] = ...) -> None: ...

class ExplainStep(_message.Message):
    __slots__ = ("step", "title", "detail")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    step: int
    title: str
    detail: str
    def __init__(self, step: _Optional[int] = ..., title: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class FactorReport(_message.Message):
    __slots__ = ("factor", "passed", "checks")
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    factor: str
    passed: bool
    checks: _containers.RepeatedCompositeFieldContainer[FactorCheck]
    def __init__(self, factor: _Optional[str] = ..., passed: _Optional[bool] = ..., checks: _Optional[_Iterable[_Union[FactorCheck, _Mapping]]] = ...) -> None: ...

class FactorCheck(_message.Message):
    __slots__ = ("name", "measured", "threshold", "passed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    measured: str
    threshold: str
    passed: bool
    def __init__(self, name: _Optional[str] = ..., measured: _Optional[str] = ..., threshold: _Optional[str] = ..., passed: _Optional[bool] = ...) -> None: ...

class ShadowDecision(_message.Message):
    __slots__ = ("policy", "outcome", "basis")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    outcome: Outcome
    basis: Basis
    def __init__(self, policy: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., basis: _Optional[_Union[Basis, str]] = ...) -> None: ...

class EvaluateBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[EvaluateRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[EvaluateRequest, _Mapping]]] = ...) -> None: ...

class EvaluateBatchResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[EvaluateBatchResult]
    def __init__(self, results: _Optional[_Iterable[_Union[EvaluateBatchResult, _Mapping]]] = ...) -> None: ...

class EvaluateBatchResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: EvaluateResponse
    error: BatchError
    def __init__(self, response: _Optional[_Union[EvaluateResponse, _Mapping]] = ..., error: _Optional[_Union[BatchError, _Mapping]] = ...) -> None: ...

class BatchError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ("decision_id", "settlement")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    SETTLEMENT_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    settlement: _lease_pb2.Settlement
    def __init__(self, decision_id: _Optional[str] = ..., settlement: _Optional[_Union[_lease_pb2.Settlement, str]] = ...) -> None: ...

class SettleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportAuthenticationRequest(_message.Message):
    __slots__ = ("tenant", "subject", "token", "session_id", "dpop", "device", "register")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    DPOP_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    subject: SubjectRef
    token: str
    session_id: str
    dpop: DpopProof
    device: DeviceEvidence
    register: bool
    def __init__(self, tenant: _Optional[str] = ..., subject: _Optional[_Union[SubjectRef, _Mapping]] = ..., token: _Optional[str] = ..., session_id: _Optional[str] = ..., dpop: _Optional[_Union[DpopProof, _Mapping]] = ..., device: _Optional[_Union[DeviceEvidence, _Mapping]] = ..., register: _Optional[bool] = ...) -> None: ...

class ReportAuthenticationResponse(_message.Message):
    __slots__ = ("authentication", "session", "device", "registering")
    AUTHENTICATION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REGISTERING_FIELD_NUMBER: _ClassVar[int]
    authentication: _resources_pb2.Authentication
    session: str
    device: str
    registering: bool
    def __init__(self, authentication: _Optional[_Union[_resources_pb2.Authentication, _Mapping]] = ..., session: _Optional[str] = ..., device: _Optional[str] = ..., registering: _Optional[bool] = ...) -> None: ...

class ReportOutcomeRequest(_message.Message):
    __slots__ = ("decision_id", "outcome")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    outcome: _report_pb2.SpotCheckOutcome
    def __init__(self, decision_id: _Optional[str] = ..., outcome: _Optional[_Union[_report_pb2.SpotCheckOutcome, str]] = ...) -> None: ...

class ReportOutcomeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
