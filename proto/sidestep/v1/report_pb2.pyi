import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuthenticationOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUTHENTICATION_OUTCOME_UNSPECIFIED: _ClassVar[AuthenticationOutcome]
    AUTHENTICATION_OUTCOME_RECORDED: _ClassVar[AuthenticationOutcome]
    AUTHENTICATION_OUTCOME_REFUSED: _ClassVar[AuthenticationOutcome]
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
