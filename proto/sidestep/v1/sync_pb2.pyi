import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sidestep.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Cursor(_message.Message):
    __slots__ = ("tenant", "lane", "epoch", "revision", "digest")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    lane: _resources_pb2.Lane
    epoch: int
    revision: int
    digest: bytes
    def __init__(self, tenant: _Optional[str] = ..., lane: _Optional[_Union[_resources_pb2.Lane, str]] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("hello", "ack", "refusal", "ping", "snapshot_request")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_REQUEST_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ack: Ack
    refusal: Refusal
    ping: Ping
    snapshot_request: SnapshotRequest
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., snapshot_request: _Optional[_Union[SnapshotRequest, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("sidecar", "instance", "version", "cursors", "nonce", "marks")
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    sidecar: str
    instance: str
    version: str
    cursors: _containers.RepeatedCompositeFieldContainer[Cursor]
    nonce: int
    marks: _containers.RepeatedCompositeFieldContainer[Cursor]
    def __init__(self, sidecar: _Optional[str] = ..., instance: _Optional[str] = ..., version: _Optional[str] = ..., cursors: _Optional[_Iterable[_Union[Cursor, _Mapping]]] = ..., nonce: _Optional[int] = ..., marks: _Optional[_Iterable[_Union[Cursor, _Mapping]]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("cursor", "chunk")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    cursor: Cursor
    chunk: int
    def __init__(self, cursor: _Optional[_Union[Cursor, _Mapping]] = ..., chunk: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("cursor", "revision", "code", "detail")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    cursor: Cursor
    revision: int
    code: str
    detail: str
    def __init__(self, cursor: _Optional[_Union[Cursor, _Mapping]] = ..., revision: _Optional[int] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("nonce", "clock_offset_ms")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFFSET_MS_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    clock_offset_ms: int
    def __init__(self, nonce: _Optional[int] = ..., clock_offset_ms: _Optional[int] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("tenant", "lane", "reason", "epoch", "revision")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    lane: _resources_pb2.Lane
    reason: str
    epoch: int
    revision: int
    def __init__(self, tenant: _Optional[str] = ..., lane: _Optional[_Union[_resources_pb2.Lane, str]] = ..., reason: _Optional[str] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class SyncResponse(_message.Message):
    __slots__ = ("heartbeat", "delta", "snapshot_required", "snapshot_offer", "snapshot_chunk", "snapshot_end", "scope", "signature")
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_OFFER_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_CHUNK_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_END_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    heartbeat: Heartbeat
    delta: bytes
    snapshot_required: SnapshotRequired
    snapshot_offer: SnapshotOffer
    snapshot_chunk: SnapshotChunk
    snapshot_end: SnapshotEnd
    scope: Scope
    signature: Signature
    def __init__(self, heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., delta: _Optional[bytes] = ..., snapshot_required: _Optional[_Union[SnapshotRequired, _Mapping]] = ..., snapshot_offer: _Optional[_Union[SnapshotOffer, _Mapping]] = ..., snapshot_chunk: _Optional[_Union[SnapshotChunk, _Mapping]] = ..., snapshot_end: _Optional[_Union[SnapshotEnd, _Mapping]] = ..., scope: _Optional[_Union[Scope, _Mapping]] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class SignedResponse(_message.Message):
    __slots__ = ("heartbeat", "delta", "snapshot_offer", "scope", "signature")
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_OFFER_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    heartbeat: bytes
    delta: bytes
    snapshot_offer: bytes
    scope: bytes
    signature: Signature
    def __init__(self, heartbeat: _Optional[bytes] = ..., delta: _Optional[bytes] = ..., snapshot_offer: _Optional[bytes] = ..., scope: _Optional[bytes] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("key_id", "signature")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    signature: bytes
    def __init__(self, key_id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Scope(_message.Message):
    __slots__ = ("tenants", "nonce", "number")
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedScalarFieldContainer[str]
    nonce: int
    number: int
    def __init__(self, tenants: _Optional[_Iterable[str]] = ..., nonce: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("tenant", "lane", "epoch", "revision", "previous_digest", "digest", "commit_time", "changes")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TIME_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    lane: _resources_pb2.Lane
    epoch: int
    revision: int
    previous_digest: bytes
    digest: bytes
    commit_time: _timestamp_pb2.Timestamp
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    def __init__(self, tenant: _Optional[str] = ..., lane: _Optional[_Union[_resources_pb2.Lane, str]] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., previous_digest: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., commit_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("collection", "id", "value", "deleted")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    collection: _resources_pb2.Collection
    id: str
    value: bytes
    deleted: bool
    def __init__(self, collection: _Optional[_Union[_resources_pb2.Collection, str]] = ..., id: _Optional[str] = ..., value: _Optional[bytes] = ..., deleted: _Optional[bool] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("heads", "server_time", "nonce")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[Cursor]
    server_time: _timestamp_pb2.Timestamp
    nonce: int
    def __init__(self, heads: _Optional[_Iterable[_Union[Cursor, _Mapping]]] = ..., server_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., nonce: _Optional[int] = ...) -> None: ...

class SnapshotRequired(_message.Message):
    __slots__ = ("tenant", "lane", "reason")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    lane: _resources_pb2.Lane
    reason: str
    def __init__(self, tenant: _Optional[str] = ..., lane: _Optional[_Union[_resources_pb2.Lane, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class SnapshotOffer(_message.Message):
    __slots__ = ("cursor", "records", "bytes", "digest_key", "payload_sha256", "chunks")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_KEY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    cursor: Cursor
    records: int
    bytes: int
    digest_key: bytes
    payload_sha256: bytes
    chunks: int
    def __init__(self, cursor: _Optional[_Union[Cursor, _Mapping]] = ..., records: _Optional[int] = ..., bytes: _Optional[int] = ..., digest_key: _Optional[bytes] = ..., payload_sha256: _Optional[bytes] = ..., chunks: _Optional[int] = ...) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("tenant", "lane", "chunk", "payload")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    lane: _resources_pb2.Lane
    chunk: int
    payload: bytes
    def __init__(self, tenant: _Optional[str] = ..., lane: _Optional[_Union[_resources_pb2.Lane, str]] = ..., chunk: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class SnapshotRecords(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[SnapshotRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[SnapshotRecord, _Mapping]]] = ...) -> None: ...

class SnapshotRecord(_message.Message):
    __slots__ = ("collection", "id", "value")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    collection: _resources_pb2.Collection
    id: str
    value: bytes
    def __init__(self, collection: _Optional[_Union[_resources_pb2.Collection, str]] = ..., id: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class SnapshotEnd(_message.Message):
    __slots__ = ("cursor", "chunks")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    cursor: Cursor
    chunks: int
    def __init__(self, cursor: _Optional[_Union[Cursor, _Mapping]] = ..., chunks: _Optional[int] = ...) -> None: ...
