import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sidestep.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FindingState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINDING_STATE_UNSPECIFIED: _ClassVar[FindingState]
    FINDING_STATE_OPEN: _ClassVar[FindingState]
    FINDING_STATE_APPLIED: _ClassVar[FindingState]
    FINDING_STATE_DISMISSED: _ClassVar[FindingState]
FINDING_STATE_UNSPECIFIED: FindingState
FINDING_STATE_OPEN: FindingState
FINDING_STATE_APPLIED: FindingState
FINDING_STATE_DISMISSED: FindingState

class ListClassAbuseRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class ListClassAbuseResponse(_message.Message):
    __slots__ = ("classes",)
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedCompositeFieldContainer[ClassAbuse]
    def __init__(self, classes: _Optional[_Iterable[_Union[ClassAbuse, _Mapping]]] = ...) -> None: ...

class ClassAbuse(_message.Message):
    __slots__ = ("grant_class", "state", "draws", "passed", "failed", "abandoned", "rate", "lower", "upper", "breaker")
    GRANT_CLASS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    grant_class: str
    state: _resources_pb2.GrantClassState
    draws: int
    passed: int
    failed: int
    abandoned: int
    rate: float
    lower: float
    upper: float
    breaker: _resources_pb2.ClassBreaker
    def __init__(self, grant_class: _Optional[str] = ..., state: _Optional[_Union[_resources_pb2.GrantClassState, _Mapping]] = ..., draws: _Optional[int] = ..., passed: _Optional[int] = ..., failed: _Optional[int] = ..., abandoned: _Optional[int] = ..., rate: _Optional[float] = ..., lower: _Optional[float] = ..., upper: _Optional[float] = ..., breaker: _Optional[_Union[_resources_pb2.ClassBreaker, _Mapping]] = ...) -> None: ...

class FleetFinding(_message.Message):
    __slots__ = ("name", "state", "first_time", "last_time", "subjects", "sidecars", "devices", "actor", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_TIME_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    SIDECARS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: FindingState
    first_time: _timestamp_pb2.Timestamp
    last_time: _timestamp_pb2.Timestamp
    subjects: float
    sidecars: _containers.RepeatedScalarFieldContainer[str]
    devices: _containers.RepeatedCompositeFieldContainer[FleetDevice]
    actor: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[FindingState, str]] = ..., first_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., subjects: _Optional[float] = ..., sidecars: _Optional[_Iterable[str]] = ..., devices: _Optional[_Iterable[_Union[FleetDevice, _Mapping]]] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class FleetDevice(_message.Message):
    __slots__ = ("subject", "device")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    subject: str
    device: str
    def __init__(self, subject: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class ListFindingsRequest(_message.Message):
    __slots__ = ("parent", "all")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    parent: str
    all: bool
    def __init__(self, parent: _Optional[str] = ..., all: _Optional[bool] = ...) -> None: ...

class ListFindingsResponse(_message.Message):
    __slots__ = ("findings",)
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[FleetFinding]
    def __init__(self, findings: _Optional[_Iterable[_Union[FleetFinding, _Mapping]]] = ...) -> None: ...

class SettleFindingRequest(_message.Message):
    __slots__ = ("name", "state", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: FindingState
    reason: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[FindingState, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class SettleFindingResponse(_message.Message):
    __slots__ = ("finding", "changed")
    FINDING_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    finding: FleetFinding
    changed: int
    def __init__(self, finding: _Optional[_Union[FleetFinding, _Mapping]] = ..., changed: _Optional[int] = ...) -> None: ...
