import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sidestep.v1 import lease_pb2 as _lease_pb2
from sidestep.v1 import report_pb2 as _report_pb2
from sidestep.v1 import resources_pb2 as _resources_pb2
from sidestep.v1 import sync_pb2 as _sync_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VersionSkew(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_SKEW_UNSPECIFIED: _ClassVar[VersionSkew]
    VERSION_SKEW_OUTSIDE: _ClassVar[VersionSkew]
    VERSION_SKEW_UNKNOWN: _ClassVar[VersionSkew]
VERSION_SKEW_UNSPECIFIED: VersionSkew
VERSION_SKEW_OUTSIDE: VersionSkew
VERSION_SKEW_UNKNOWN: VersionSkew

class PutResourceRequest(_message.Message):
    __slots__ = ("resource", "validate_only", "reason", "ticket")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    resource: _resources_pb2.Resource
    validate_only: bool
    reason: str
    ticket: str
    def __init__(self, resource: _Optional[_Union[_resources_pb2.Resource, _Mapping]] = ..., validate_only: _Optional[bool] = ..., reason: _Optional[str] = ..., ticket: _Optional[str] = ...) -> None: ...

class PutResourceResponse(_message.Message):
    __slots__ = ("resource", "revision", "changed", "warnings", "guarded_by")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    GUARDED_BY_FIELD_NUMBER: _ClassVar[int]
    resource: _resources_pb2.Resource
    revision: _resources_pb2.Revision
    changed: bool
    warnings: _containers.RepeatedScalarFieldContainer[str]
    guarded_by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, resource: _Optional[_Union[_resources_pb2.Resource, _Mapping]] = ..., revision: _Optional[_Union[_resources_pb2.Revision, _Mapping]] = ..., changed: _Optional[bool] = ..., warnings: _Optional[_Iterable[str]] = ..., guarded_by: _Optional[_Iterable[str]] = ...) -> None: ...

class GetResourceRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetResourceResponse(_message.Message):
    __slots__ = ("resource",)
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    resource: _resources_pb2.Resource
    def __init__(self, resource: _Optional[_Union[_resources_pb2.Resource, _Mapping]] = ...) -> None: ...

class ListResourcesRequest(_message.Message):
    __slots__ = ("parent", "collection", "page_size", "page_token", "id_prefix")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ID_PREFIX_FIELD_NUMBER: _ClassVar[int]
    parent: str
    collection: _resources_pb2.Collection
    page_size: int
    page_token: str
    id_prefix: str
    def __init__(self, parent: _Optional[str] = ..., collection: _Optional[_Union[_resources_pb2.Collection, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., id_prefix: _Optional[str] = ...) -> None: ...

class ListResourcesResponse(_message.Message):
    __slots__ = ("resources", "next_page_token", "total_size")
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    resources: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Resource]
    next_page_token: str
    total_size: int
    def __init__(self, resources: _Optional[_Iterable[_Union[_resources_pb2.Resource, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class ListBudgetAccountsRequest(_message.Message):
    __slots__ = ("name", "subject", "page_size", "page_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    subject: str
    page_size: int
    page_token: str
    def __init__(self, name: _Optional[str] = ..., subject: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListBudgetAccountsResponse(_message.Message):
    __slots__ = ("accounts", "next_page_token")
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    accounts: _containers.RepeatedCompositeFieldContainer[BudgetAccount]
    next_page_token: str
    def __init__(self, accounts: _Optional[_Iterable[_Union[BudgetAccount, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class BudgetAccount(_message.Message):
    __slots__ = ("subject", "period", "current", "start_time", "spent", "cancelled", "held", "left", "holders")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    subject: str
    period: int
    current: bool
    start_time: _timestamp_pb2.Timestamp
    spent: _lease_pb2.BudgetRoom
    cancelled: _lease_pb2.BudgetRoom
    held: _lease_pb2.BudgetRoom
    left: _lease_pb2.BudgetRoom
    holders: int
    def __init__(self, subject: _Optional[str] = ..., period: _Optional[int] = ..., current: _Optional[bool] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., spent: _Optional[_Union[_lease_pb2.BudgetRoom, _Mapping]] = ..., cancelled: _Optional[_Union[_lease_pb2.BudgetRoom, _Mapping]] = ..., held: _Optional[_Union[_lease_pb2.BudgetRoom, _Mapping]] = ..., left: _Optional[_Union[_lease_pb2.BudgetRoom, _Mapping]] = ..., holders: _Optional[int] = ...) -> None: ...

class DeleteResourceRequest(_message.Message):
    __slots__ = ("name", "reason", "ticket")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    ticket: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ..., ticket: _Optional[str] = ...) -> None: ...

class DeleteResourceResponse(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: _resources_pb2.Revision
    def __init__(self, revision: _Optional[_Union[_resources_pb2.Revision, _Mapping]] = ...) -> None: ...

class ImportResourcesRequest(_message.Message):
    __slots__ = ("start", "batch", "commit")
    START_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    start: ImportStart
    batch: ImportBatch
    commit: ImportCommit
    def __init__(self, start: _Optional[_Union[ImportStart, _Mapping]] = ..., batch: _Optional[_Union[ImportBatch, _Mapping]] = ..., commit: _Optional[_Union[ImportCommit, _Mapping]] = ...) -> None: ...

class ImportStart(_message.Message):
    __slots__ = ("parent", "collection", "source", "replace", "force")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    collection: _resources_pb2.Collection
    source: str
    replace: bool
    force: bool
    def __init__(self, parent: _Optional[str] = ..., collection: _Optional[_Union[_resources_pb2.Collection, str]] = ..., source: _Optional[str] = ..., replace: _Optional[bool] = ..., force: _Optional[bool] = ...) -> None: ...

class ImportBatch(_message.Message):
    __slots__ = ("resources",)
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    resources: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Resource]
    def __init__(self, resources: _Optional[_Iterable[_Union[_resources_pb2.Resource, _Mapping]]] = ...) -> None: ...

class ImportCommit(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class ImportResourcesResponse(_message.Message):
    __slots__ = ("received", "added", "updated", "removed", "unchanged", "revision")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    received: int
    added: int
    updated: int
    removed: int
    unchanged: int
    revision: _resources_pb2.Revision
    def __init__(self, received: _Optional[int] = ..., added: _Optional[int] = ..., updated: _Optional[int] = ..., removed: _Optional[int] = ..., unchanged: _Optional[int] = ..., revision: _Optional[_Union[_resources_pb2.Revision, _Mapping]] = ...) -> None: ...

class CheckPolicyRequest(_message.Message):
    __slots__ = ("parent", "source")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    source: str
    def __init__(self, parent: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class CheckPolicyResponse(_message.Message):
    __slots__ = ("problems", "warnings")
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    problems: _containers.RepeatedCompositeFieldContainer[PolicyProblem]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, problems: _Optional[_Iterable[_Union[PolicyProblem, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class PolicyProblem(_message.Message):
    __slots__ = ("line", "column", "path", "message")
    LINE_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    line: int
    column: int
    path: str
    message: str
    def __init__(self, line: _Optional[int] = ..., column: _Optional[int] = ..., path: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class GetRevisionsRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class GetRevisionsResponse(_message.Message):
    __slots__ = ("heads",)
    HEADS_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[_sync_pb2.Cursor]
    def __init__(self, heads: _Optional[_Iterable[_Union[_sync_pb2.Cursor, _Mapping]]] = ...) -> None: ...

class ListSidecarsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "behind", "refusing", "disconnected")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    REFUSING_FIELD_NUMBER: _ClassVar[int]
    DISCONNECTED_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    behind: bool
    refusing: bool
    disconnected: bool
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., behind: _Optional[bool] = ..., refusing: _Optional[bool] = ..., disconnected: _Optional[bool] = ...) -> None: ...

class ListSidecarsResponse(_message.Message):
    __slots__ = ("sidecars", "next_page_token")
    SIDECARS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sidecars: _containers.RepeatedCompositeFieldContainer[SidecarStatus]
    next_page_token: str
    def __init__(self, sidecars: _Optional[_Iterable[_Union[SidecarStatus, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SidecarStatus(_message.Message):
    __slots__ = ("sidecar", "instance", "version", "connected", "connect_time", "seen_time", "cursors", "refusal", "lags", "clock_offset_ms", "refusals", "version_skew", "identity")
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    CONNECT_TIME_FIELD_NUMBER: _ClassVar[int]
    SEEN_TIME_FIELD_NUMBER: _ClassVar[int]
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    LAGS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFFSET_MS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    VERSION_SKEW_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    sidecar: str
    instance: str
    version: str
    connected: bool
    connect_time: _timestamp_pb2.Timestamp
    seen_time: _timestamp_pb2.Timestamp
    cursors: _containers.RepeatedCompositeFieldContainer[_sync_pb2.Cursor]
    refusal: str
    lags: _containers.RepeatedCompositeFieldContainer[SidecarLag]
    clock_offset_ms: int
    refusals: _containers.RepeatedCompositeFieldContainer[LaneRefusal]
    version_skew: VersionSkew
    identity: str
    def __init__(self, sidecar: _Optional[str] = ..., instance: _Optional[str] = ..., version: _Optional[str] = ..., connected: _Optional[bool] = ..., connect_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., seen_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cursors: _Optional[_Iterable[_Union[_sync_pb2.Cursor, _Mapping]]] = ..., refusal: _Optional[str] = ..., lags: _Optional[_Iterable[_Union[SidecarLag, _Mapping]]] = ..., clock_offset_ms: _Optional[int] = ..., refusals: _Optional[_Iterable[_Union[LaneRefusal, _Mapping]]] = ..., version_skew: _Optional[_Union[VersionSkew, str]] = ..., identity: _Optional[str] = ...) -> None: ...

class SidecarLag(_message.Message):
    __slots__ = ("tenant", "lane", "revisions", "age")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    lane: _resources_pb2.Lane
    revisions: int
    age: _duration_pb2.Duration
    def __init__(self, tenant: _Optional[str] = ..., lane: _Optional[_Union[_resources_pb2.Lane, str]] = ..., revisions: _Optional[int] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LaneRefusal(_message.Message):
    __slots__ = ("tenant", "lane", "revision", "code", "detail")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    lane: _resources_pb2.Lane
    revision: int
    code: str
    detail: str
    def __init__(self, tenant: _Optional[str] = ..., lane: _Optional[_Union[_resources_pb2.Lane, str]] = ..., revision: _Optional[int] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class GetRolloutRequest(_message.Message):
    __slots__ = ("parent", "targets", "seen_within")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    SEEN_WITHIN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    targets: _containers.RepeatedCompositeFieldContainer[_sync_pb2.Cursor]
    seen_within: _duration_pb2.Duration
    def __init__(self, parent: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[_sync_pb2.Cursor, _Mapping]]] = ..., seen_within: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetRolloutResponse(_message.Message):
    __slots__ = ("targets", "sidecars", "current", "missing")
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    SIDECARS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedCompositeFieldContainer[_sync_pb2.Cursor]
    sidecars: int
    current: int
    missing: _containers.RepeatedCompositeFieldContainer[SidecarStatus]
    def __init__(self, targets: _Optional[_Iterable[_Union[_sync_pb2.Cursor, _Mapping]]] = ..., sidecars: _Optional[int] = ..., current: _Optional[int] = ..., missing: _Optional[_Iterable[_Union[SidecarStatus, _Mapping]]] = ...) -> None: ...

class ListJournalChainsRequest(_message.Message):
    __slots__ = ("sidecar", "page_size", "page_token")
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sidecar: str
    page_size: int
    page_token: str
    def __init__(self, sidecar: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJournalChainsResponse(_message.Message):
    __slots__ = ("chains", "next_page_token")
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    chains: _containers.RepeatedCompositeFieldContainer[JournalChainStatus]
    next_page_token: str
    def __init__(self, chains: _Optional[_Iterable[_Union[JournalChainStatus, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class JournalChainStatus(_message.Message):
    __slots__ = ("sidecar", "chain", "first_report_time", "last_report_time", "conflicts", "connected")
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    FIRST_REPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_REPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    sidecar: str
    chain: _report_pb2.JournalChain
    first_report_time: _timestamp_pb2.Timestamp
    last_report_time: _timestamp_pb2.Timestamp
    conflicts: int
    connected: bool
    def __init__(self, sidecar: _Optional[str] = ..., chain: _Optional[_Union[_report_pb2.JournalChain, _Mapping]] = ..., first_report_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_report_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., conflicts: _Optional[int] = ..., connected: _Optional[bool] = ...) -> None: ...

class ListJournalAnchorsRequest(_message.Message):
    __slots__ = ("sidecar", "chain", "page_size", "page_token")
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sidecar: str
    chain: str
    page_size: int
    page_token: str
    def __init__(self, sidecar: _Optional[str] = ..., chain: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJournalAnchorsResponse(_message.Message):
    __slots__ = ("anchors", "next_page_token")
    ANCHORS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    anchors: _containers.RepeatedCompositeFieldContainer[JournalAnchor]
    next_page_token: str
    def __init__(self, anchors: _Optional[_Iterable[_Union[JournalAnchor, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class JournalAnchor(_message.Message):
    __slots__ = ("records", "head", "report_time")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    REPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    records: int
    head: bytes
    report_time: _timestamp_pb2.Timestamp
    def __init__(self, records: _Optional[int] = ..., head: _Optional[bytes] = ..., report_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetRulesRequest(_message.Message):
    __slots__ = ("parent", "revision")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    parent: str
    revision: _resources_pb2.Revision
    def __init__(self, parent: _Optional[str] = ..., revision: _Optional[_Union[_resources_pb2.Revision, _Mapping]] = ...) -> None: ...

class GetRulesResponse(_message.Message):
    __slots__ = ("from_revision", "until_revision", "policies", "settings")
    FROM_REVISION_FIELD_NUMBER: _ClassVar[int]
    UNTIL_REVISION_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    from_revision: int
    until_revision: int
    policies: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Policy]
    settings: _resources_pb2.Settings
    def __init__(self, from_revision: _Optional[int] = ..., until_revision: _Optional[int] = ..., policies: _Optional[_Iterable[_Union[_resources_pb2.Policy, _Mapping]]] = ..., settings: _Optional[_Union[_resources_pb2.Settings, _Mapping]] = ...) -> None: ...

class HashSubjectRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class HashSubjectResponse(_message.Message):
    __slots__ = ("hashes",)
    HASHES_FIELD_NUMBER: _ClassVar[int]
    hashes: _containers.RepeatedCompositeFieldContainer[SubjectHash]
    def __init__(self, hashes: _Optional[_Iterable[_Union[SubjectHash, _Mapping]]] = ...) -> None: ...

class SubjectHash(_message.Message):
    __slots__ = ("key", "hash", "start_time", "expire_time")
    KEY_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    key: str
    hash: str
    start_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, key: _Optional[str] = ..., hash: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
