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

class GrantTransition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRANT_TRANSITION_UNSPECIFIED: _ClassVar[GrantTransition]
    GRANT_TRANSITION_REQUEST: _ClassVar[GrantTransition]
    GRANT_TRANSITION_APPROVE: _ClassVar[GrantTransition]
    GRANT_TRANSITION_REJECT: _ClassVar[GrantTransition]
    GRANT_TRANSITION_ACTIVATE: _ClassVar[GrantTransition]
    GRANT_TRANSITION_SUSPEND: _ClassVar[GrantTransition]
    GRANT_TRANSITION_RESUME: _ClassVar[GrantTransition]
    GRANT_TRANSITION_REVOKE: _ClassVar[GrantTransition]
    GRANT_TRANSITION_RENEW: _ClassVar[GrantTransition]
GRANT_TRANSITION_UNSPECIFIED: GrantTransition
GRANT_TRANSITION_REQUEST: GrantTransition
GRANT_TRANSITION_APPROVE: GrantTransition
GRANT_TRANSITION_REJECT: GrantTransition
GRANT_TRANSITION_ACTIVATE: GrantTransition
GRANT_TRANSITION_SUSPEND: GrantTransition
GRANT_TRANSITION_RESUME: GrantTransition
GRANT_TRANSITION_REVOKE: GrantTransition
GRANT_TRANSITION_RENEW: GrantTransition

class ChangeGrantRequest(_message.Message):
    __slots__ = ("name", "transition", "reason", "ticket", "review_time", "update_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    REVIEW_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    transition: GrantTransition
    reason: str
    ticket: str
    review_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., transition: _Optional[_Union[GrantTransition, str]] = ..., reason: _Optional[str] = ..., ticket: _Optional[str] = ..., review_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ChangeGrantResponse(_message.Message):
    __slots__ = ("grant", "revision", "warnings")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    grant: _resources_pb2.Grant
    revision: _resources_pb2.Revision
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, grant: _Optional[_Union[_resources_pb2.Grant, _Mapping]] = ..., revision: _Optional[_Union[_resources_pb2.Revision, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ReviewAccessRequest(_message.Message):
    __slots__ = ("parent", "subject", "dormant")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DORMANT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    subject: str
    dormant: bool
    def __init__(self, parent: _Optional[str] = ..., subject: _Optional[str] = ..., dormant: _Optional[bool] = ...) -> None: ...

class ReviewAccessResponse(_message.Message):
    __slots__ = ("entries", "exemptions_off", "time")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    EXEMPTIONS_OFF_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AccessEntry]
    exemptions_off: bool
    time: _timestamp_pb2.Timestamp
    def __init__(self, entries: _Optional[_Iterable[_Union[AccessEntry, _Mapping]]] = ..., exemptions_off: _Optional[bool] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AccessEntry(_message.Message):
    __slots__ = ("subject", "grant", "scope", "scope_value", "grant_class", "actions", "ceiling", "state", "refusal", "owner", "reason", "ticket", "expire_time", "review_time", "last_use_time")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_VALUE_FIELD_NUMBER: _ClassVar[int]
    GRANT_CLASS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    CEILING_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REVIEW_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_USE_TIME_FIELD_NUMBER: _ClassVar[int]
    subject: str
    grant: str
    scope: _resources_pb2.GrantScope
    scope_value: str
    grant_class: str
    actions: _containers.RepeatedScalarFieldContainer[str]
    ceiling: _resources_pb2.Requirement
    state: _resources_pb2.GrantState
    refusal: str
    owner: str
    reason: str
    ticket: str
    expire_time: _timestamp_pb2.Timestamp
    review_time: _timestamp_pb2.Timestamp
    last_use_time: _timestamp_pb2.Timestamp
    def __init__(self, subject: _Optional[str] = ..., grant: _Optional[str] = ..., scope: _Optional[_Union[_resources_pb2.GrantScope, str]] = ..., scope_value: _Optional[str] = ..., grant_class: _Optional[str] = ..., actions: _Optional[_Iterable[str]] = ..., ceiling: _Optional[_Union[_resources_pb2.Requirement, _Mapping]] = ..., state: _Optional[_Union[_resources_pb2.GrantState, str]] = ..., refusal: _Optional[str] = ..., owner: _Optional[str] = ..., reason: _Optional[str] = ..., ticket: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., review_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_use_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
