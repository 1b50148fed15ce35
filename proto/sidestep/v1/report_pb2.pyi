import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

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
