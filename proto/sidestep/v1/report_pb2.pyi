import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SpotCheckOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPOT_CHECK_OUTCOME_UNSPECIFIED: _ClassVar[SpotCheckOutcome]
    SPOT_CHECK_OUTCOME_PASSED: _ClassVar[SpotCheckOutcome]
    SPOT_CHECK_OUTCOME_FAILED: _ClassVar[SpotCheckOutcome]
    SPOT_CHECK_OUTCOME_ABANDONED: _ClassVar[SpotCheckOutcome]

class AuthenticationOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUTHENTICATION_OUTCOME_UNSPECIFIED: _ClassVar[AuthenticationOutcome]
    AUTHENTICATION_OUTCOME_RECORDED: _ClassVar[AuthenticationOutcome]
    AUTHENTICATION_OUTCOME_REFUSED: _ClassVar[AuthenticationOutcome]
SPOT_CHECK_OUTCOME_UNSPECIFIED: SpotCheckOutcome
SPOT_CHECK_OUTCOME_PASSED: SpotCheckOutcome
SPOT_CHECK_OUTCOME_FAILED: SpotCheckOutcome
SPOT_CHECK_OUTCOME_ABANDONED: SpotCheckOutcome
AUTHENTICATION_OUTCOME_UNSPECIFIED: AuthenticationOutcome
AUTHENTICATION_OUTCOME_RECORDED: AuthenticationOutcome
AUTHENTICATION_OUTCOME_REFUSED: AuthenticationOutcome

class ReportJournalRequest(_message.Message):
    __slots__ = ("sidecar", "chains")
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    sidecar: str
    chains: _containers.RepeatedCompositeFieldContainer[JournalChain]
    def __init__(self, sidecar: _Optional[str] = ..., chains: _Optional[_Iterable[_Union[JournalChain, _Mapping]]] = ...) -> None: ...

class ReportJournalResponse(_message.Message):
    __slots__ = ("conflicts",)
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    conflicts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, conflicts: _Optional[_Iterable[str]] = ...) -> None: ...

class JournalChain(_message.Message):
    __slots__ = ("chain", "records", "head", "settled", "quarantined", "discarded", "lost", "unrecorded", "spooled", "ended", "report_time")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    UNRECORDED_FIELD_NUMBER: _ClassVar[int]
    SPOOLED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    REPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    chain: str
    records: int
    head: bytes
    settled: int
    quarantined: int
    discarded: int
    lost: int
    unrecorded: int
    spooled: int
    ended: bool
    report_time: _timestamp_pb2.Timestamp
    def __init__(self, chain: _Optional[str] = ..., records: _Optional[int] = ..., head: _Optional[bytes] = ..., settled: _Optional[int] = ..., quarantined: _Optional[int] = ..., discarded: _Optional[int] = ..., lost: _Optional[int] = ..., unrecorded: _Optional[int] = ..., spooled: _Optional[int] = ..., ended: _Optional[bool] = ..., report_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReportUsageRequest(_message.Message):
    __slots__ = ("sidecar", "windows", "outcomes")
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    sidecar: str
    windows: _containers.RepeatedCompositeFieldContainer[UsageWindow]
    outcomes: _containers.RepeatedCompositeFieldContainer[SpotCheck]
    def __init__(self, sidecar: _Optional[str] = ..., windows: _Optional[_Iterable[_Union[UsageWindow, _Mapping]]] = ..., outcomes: _Optional[_Iterable[_Union[SpotCheck, _Mapping]]] = ...) -> None: ...

class ReportUsageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UsageWindow(_message.Message):
    __slots__ = ("chain", "number", "start_time", "end_time", "tenants")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    chain: str
    number: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUsage]
    def __init__(self, chain: _Optional[str] = ..., number: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tenants: _Optional[_Iterable[_Union[TenantUsage, _Mapping]]] = ...) -> None: ...

class TenantUsage(_message.Message):
    __slots__ = ("tenant", "decisions", "grants", "draws", "guards", "sketch_key", "fingerprints", "dropped")
    class DecisionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    GUARDS_FIELD_NUMBER: _ClassVar[int]
    SKETCH_KEY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    decisions: _containers.ScalarMap[str, int]
    grants: _containers.RepeatedCompositeFieldContainer[GrantUse]
    draws: _containers.RepeatedCompositeFieldContainer[SpotCheck]
    guards: _containers.RepeatedCompositeFieldContainer[GuardCount]
    sketch_key: bytes
    fingerprints: _containers.RepeatedCompositeFieldContainer[FingerprintUse]
    dropped: int
    def __init__(self, tenant: _Optional[str] = ..., decisions: _Optional[_Mapping[str, int]] = ..., grants: _Optional[_Iterable[_Union[GrantUse, _Mapping]]] = ..., draws: _Optional[_Iterable[_Union[SpotCheck, _Mapping]]] = ..., guards: _Optional[_Iterable[_Union[GuardCount, _Mapping]]] = ..., sketch_key: _Optional[bytes] = ..., fingerprints: _Optional[_Iterable[_Union[FingerprintUse, _Mapping]]] = ..., dropped: _Optional[int] = ...) -> None: ...

class GrantUse(_message.Message):
    __slots__ = ("grant", "grant_class", "uses", "last_time")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    GRANT_CLASS_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    LAST_TIME_FIELD_NUMBER: _ClassVar[int]
    grant: str
    grant_class: str
    uses: int
    last_time: _timestamp_pb2.Timestamp
    def __init__(self, grant: _Optional[str] = ..., grant_class: _Optional[str] = ..., uses: _Optional[int] = ..., last_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GuardCount(_message.Message):
    __slots__ = ("guard", "code", "findings")
    GUARD_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    guard: str
    code: str
    findings: int
    def __init__(self, guard: _Optional[str] = ..., code: _Optional[str] = ..., findings: _Optional[int] = ...) -> None: ...

class FingerprintUse(_message.Message):
    __slots__ = ("fingerprint", "subjects", "devices")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    subjects: bytes
    devices: _containers.RepeatedCompositeFieldContainer[SubjectDevice]
    def __init__(self, fingerprint: _Optional[bytes] = ..., subjects: _Optional[bytes] = ..., devices: _Optional[_Iterable[_Union[SubjectDevice, _Mapping]]] = ...) -> None: ...

class SubjectDevice(_message.Message):
    __slots__ = ("subject", "device")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    subject: str
    device: str
    def __init__(self, subject: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class SpotCheck(_message.Message):
    __slots__ = ("tenant", "sample", "grant", "grant_class", "rate", "draw_time", "outcome")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    GRANT_CLASS_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    DRAW_TIME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    sample: bytes
    grant: str
    grant_class: str
    rate: float
    draw_time: _timestamp_pb2.Timestamp
    outcome: SpotCheckOutcome
    def __init__(self, tenant: _Optional[str] = ..., sample: _Optional[bytes] = ..., grant: _Optional[str] = ..., grant_class: _Optional[str] = ..., rate: _Optional[float] = ..., draw_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., outcome: _Optional[_Union[SpotCheckOutcome, str]] = ...) -> None: ...

class ReportAuthenticationsRequest(_message.Message):
    __slots__ = ("sidecar", "authentications", "refusals")
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    AUTHENTICATIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    sidecar: str
    authentications: _containers.RepeatedCompositeFieldContainer[ReportedAuthentication]
    refusals: _containers.RepeatedCompositeFieldContainer[RefusedAuthentication]
    def __init__(self, sidecar: _Optional[str] = ..., authentications: _Optional[_Iterable[_Union[ReportedAuthentication, _Mapping]]] = ..., refusals: _Optional[_Iterable[_Union[RefusedAuthentication, _Mapping]]] = ...) -> None: ...

class RefusedAuthentication(_message.Message):
    __slots__ = ("tenant", "subject", "caller", "problem", "time")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    subject: str
    caller: str
    problem: str
    time: _timestamp_pb2.Timestamp
    def __init__(self, tenant: _Optional[str] = ..., subject: _Optional[str] = ..., caller: _Optional[str] = ..., problem: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReportedAuthentication(_message.Message):
    __slots__ = ("tenant", "subject", "token", "report_time", "device", "register", "components", "versions", "key_id", "jkt")
    class ComponentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    JKT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    subject: str
    token: str
    report_time: _timestamp_pb2.Timestamp
    device: str
    register: bool
    components: _containers.ScalarMap[str, bytes]
    versions: _containers.ScalarMap[str, int]
    key_id: str
    jkt: str
    def __init__(self, tenant: _Optional[str] = ..., subject: _Optional[str] = ..., token: _Optional[str] = ..., report_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., device: _Optional[str] = ..., register: _Optional[bool] = ..., components: _Optional[_Mapping[str, bytes]] = ..., versions: _Optional[_Mapping[str, int]] = ..., key_id: _Optional[str] = ..., jkt: _Optional[str] = ...) -> None: ...

class ReportAuthenticationsResponse(_message.Message):
    __slots__ = ("receipts",)
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    receipts: _containers.RepeatedCompositeFieldContainer[AuthenticationReceipt]
    def __init__(self, receipts: _Optional[_Iterable[_Union[AuthenticationReceipt, _Mapping]]] = ...) -> None: ...

class AuthenticationReceipt(_message.Message):
    __slots__ = ("outcome", "problem", "device_updated")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    DEVICE_UPDATED_FIELD_NUMBER: _ClassVar[int]
    outcome: AuthenticationOutcome
    problem: str
    device_updated: bool
    def __init__(self, outcome: _Optional[_Union[AuthenticationOutcome, str]] = ..., problem: _Optional[str] = ..., device_updated: _Optional[bool] = ...) -> None: ...
