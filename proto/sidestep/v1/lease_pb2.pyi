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

class LeaseRefusal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_REFUSAL_UNSPECIFIED: _ClassVar[LeaseRefusal]
    LEASE_REFUSAL_EXHAUSTED: _ClassVar[LeaseRefusal]
    LEASE_REFUSAL_NO_BUDGET: _ClassVar[LeaseRefusal]
    LEASE_REFUSAL_CURRENCY: _ClassVar[LeaseRefusal]

class Settlement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SETTLEMENT_UNSPECIFIED: _ClassVar[Settlement]
    SETTLEMENT_EXECUTED: _ClassVar[Settlement]
    SETTLEMENT_CANCELLED: _ClassVar[Settlement]

class SettleResult(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SETTLE_RESULT_UNSPECIFIED: _ClassVar[SettleResult]
    SETTLE_RESULT_SETTLED: _ClassVar[SettleResult]
    SETTLE_RESULT_SETTLED_OTHERWISE: _ClassVar[SettleResult]
LEASE_REFUSAL_UNSPECIFIED: LeaseRefusal
LEASE_REFUSAL_EXHAUSTED: LeaseRefusal
LEASE_REFUSAL_NO_BUDGET: LeaseRefusal
LEASE_REFUSAL_CURRENCY: LeaseRefusal
SETTLEMENT_UNSPECIFIED: Settlement
SETTLEMENT_EXECUTED: Settlement
SETTLEMENT_CANCELLED: Settlement
SETTLE_RESULT_UNSPECIFIED: SettleResult
SETTLE_RESULT_SETTLED: SettleResult
SETTLE_RESULT_SETTLED_OTHERWISE: SettleResult

class BudgetRoom(_message.Message):
    __slots__ = ("count", "amount")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    amount: _resources_pb2.Amount
    def __init__(self, count: _Optional[int] = ..., amount: _Optional[_Union[_resources_pb2.Amount, _Mapping]] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("tenant", "holder", "sidecar", "sequence", "standings", "asks")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STANDINGS_FIELD_NUMBER: _ClassVar[int]
    ASKS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    holder: str
    sidecar: str
    sequence: int
    standings: _containers.RepeatedCompositeFieldContainer[LeaseStanding]
    asks: _containers.RepeatedCompositeFieldContainer[LeaseAsk]
    def __init__(self, tenant: _Optional[str] = ..., holder: _Optional[str] = ..., sidecar: _Optional[str] = ..., sequence: _Optional[int] = ..., standings: _Optional[_Iterable[_Union[LeaseStanding, _Mapping]]] = ..., asks: _Optional[_Iterable[_Union[LeaseAsk, _Mapping]]] = ...) -> None: ...

class LeaseStanding(_message.Message):
    __slots__ = ("grant", "subject", "period", "granted", "spent", "returned")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    grant: str
    subject: str
    period: int
    granted: BudgetRoom
    spent: BudgetRoom
    returned: BudgetRoom
    def __init__(self, grant: _Optional[str] = ..., subject: _Optional[str] = ..., period: _Optional[int] = ..., granted: _Optional[_Union[BudgetRoom, _Mapping]] = ..., spent: _Optional[_Union[BudgetRoom, _Mapping]] = ..., returned: _Optional[_Union[BudgetRoom, _Mapping]] = ...) -> None: ...

class LeaseAsk(_message.Message):
    __slots__ = ("grant", "subject", "least", "want")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    LEAST_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    grant: str
    subject: str
    least: BudgetRoom
    want: BudgetRoom
    def __init__(self, grant: _Optional[str] = ..., subject: _Optional[str] = ..., least: _Optional[_Union[BudgetRoom, _Mapping]] = ..., want: _Optional[_Union[BudgetRoom, _Mapping]] = ...) -> None: ...

class LeaseResponse(_message.Message):
    __slots__ = ("slices",)
    SLICES_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedCompositeFieldContainer[LeaseSlice]
    def __init__(self, slices: _Optional[_Iterable[_Union[LeaseSlice, _Mapping]]] = ...) -> None: ...

class LeaseSlice(_message.Message):
    __slots__ = ("grant", "subject", "period", "start_time", "granted", "left", "refusal")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    grant: str
    subject: str
    period: int
    start_time: _timestamp_pb2.Timestamp
    granted: BudgetRoom
    left: BudgetRoom
    refusal: LeaseRefusal
    def __init__(self, grant: _Optional[str] = ..., subject: _Optional[str] = ..., period: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., granted: _Optional[_Union[BudgetRoom, _Mapping]] = ..., left: _Optional[_Union[BudgetRoom, _Mapping]] = ..., refusal: _Optional[_Union[LeaseRefusal, str]] = ...) -> None: ...

class CloseHolderRequest(_message.Message):
    __slots__ = ("tenant", "holder", "sidecar", "standings")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    STANDINGS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    holder: str
    sidecar: str
    standings: _containers.RepeatedCompositeFieldContainer[LeaseStanding]
    def __init__(self, tenant: _Optional[str] = ..., holder: _Optional[str] = ..., sidecar: _Optional[str] = ..., standings: _Optional[_Iterable[_Union[LeaseStanding, _Mapping]]] = ...) -> None: ...

class CloseHolderResponse(_message.Message):
    __slots__ = ("conflicts",)
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    conflicts: _containers.RepeatedCompositeFieldContainer[LeaseConflict]
    def __init__(self, conflicts: _Optional[_Iterable[_Union[LeaseConflict, _Mapping]]] = ...) -> None: ...

class LeaseConflict(_message.Message):
    __slots__ = ("grant", "subject", "period")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    grant: str
    subject: str
    period: int
    def __init__(self, grant: _Optional[str] = ..., subject: _Optional[str] = ..., period: _Optional[int] = ...) -> None: ...

class SettleSpendsRequest(_message.Message):
    __slots__ = ("tenant", "settlements")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SETTLEMENTS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    settlements: _containers.RepeatedCompositeFieldContainer[SpendSettlement]
    def __init__(self, tenant: _Optional[str] = ..., settlements: _Optional[_Iterable[_Union[SpendSettlement, _Mapping]]] = ...) -> None: ...

class SpendSettlement(_message.Message):
    __slots__ = ("decision_id", "settlement", "holder", "grant", "subject", "period", "spent")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    SETTLEMENT_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    settlement: Settlement
    holder: str
    grant: str
    subject: str
    period: int
    spent: BudgetRoom
    def __init__(self, decision_id: _Optional[str] = ..., settlement: _Optional[_Union[Settlement, str]] = ..., holder: _Optional[str] = ..., grant: _Optional[str] = ..., subject: _Optional[str] = ..., period: _Optional[int] = ..., spent: _Optional[_Union[BudgetRoom, _Mapping]] = ...) -> None: ...

class SettleSpendsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedScalarFieldContainer[SettleResult]
    def __init__(self, results: _Optional[_Iterable[_Union[SettleResult, str]]] = ...) -> None: ...
