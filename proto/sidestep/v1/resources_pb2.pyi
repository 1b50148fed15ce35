import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Collection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COLLECTION_UNSPECIFIED: _ClassVar[Collection]
    COLLECTION_POLICIES: _ClassVar[Collection]
    COLLECTION_GRANTS: _ClassVar[Collection]
    COLLECTION_SUBJECTS: _ClassVar[Collection]
    COLLECTION_DEVICE_STATES: _ClassVar[Collection]
    COLLECTION_REVOKED_SESSIONS: _ClassVar[Collection]
    COLLECTION_KEYS: _ClassVar[Collection]
    COLLECTION_POSTURES: _ClassVar[Collection]
    COLLECTION_SETTINGS: _ClassVar[Collection]
    COLLECTION_GRANT_CLASSES: _ClassVar[Collection]
    COLLECTION_DEVICES: _ClassVar[Collection]
    COLLECTION_SIGNALS: _ClassVar[Collection]

class Lane(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LANE_UNSPECIFIED: _ClassVar[Lane]
    LANE_URGENT: _ClassVar[Lane]
    LANE_BULK: _ClassVar[Lane]

class Evidence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVIDENCE_UNSPECIFIED: _ClassVar[Evidence]
    EVIDENCE_ASSERTED: _ClassVar[Evidence]
    EVIDENCE_VERIFIED: _ClassVar[Evidence]

class GrantState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRANT_STATE_UNSPECIFIED: _ClassVar[GrantState]
    GRANT_STATE_ACTIVE: _ClassVar[GrantState]
    GRANT_STATE_SUSPENDED: _ClassVar[GrantState]
    GRANT_STATE_REVOKED: _ClassVar[GrantState]
    GRANT_STATE_REQUESTED: _ClassVar[GrantState]
    GRANT_STATE_APPROVED: _ClassVar[GrantState]
    GRANT_STATE_EXPIRED: _ClassVar[GrantState]
    GRANT_STATE_LAPSED: _ClassVar[GrantState]
    GRANT_STATE_REJECTED: _ClassVar[GrantState]

class GrantScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRANT_SCOPE_UNSPECIFIED: _ClassVar[GrantScope]
    GRANT_SCOPE_SUBJECT: _ClassVar[GrantScope]
    GRANT_SCOPE_ROLE: _ClassVar[GrantScope]
    GRANT_SCOPE_DEVICE: _ClassVar[GrantScope]

class ClassState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLASS_STATE_UNSPECIFIED: _ClassVar[ClassState]
    CLASS_STATE_ACTIVE: _ClassVar[ClassState]
    CLASS_STATE_SUSPENDED: _ClassVar[ClassState]
    CLASS_STATE_REOPENING: _ClassVar[ClassState]

class SubjectState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUBJECT_STATE_UNSPECIFIED: _ClassVar[SubjectState]
    SUBJECT_STATE_ACTIVE: _ClassVar[SubjectState]
    SUBJECT_STATE_DISABLED: _ClassVar[SubjectState]

class DeviceTrust(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_TRUST_UNSPECIFIED: _ClassVar[DeviceTrust]
    DEVICE_TRUST_ACTIVE: _ClassVar[DeviceTrust]
    DEVICE_TRUST_QUARANTINED: _ClassVar[DeviceTrust]
    DEVICE_TRUST_REVOKED: _ClassVar[DeviceTrust]

class KeyKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEY_KIND_UNSPECIFIED: _ClassVar[KeyKind]
    KEY_KIND_ISSUER: _ClassVar[KeyKind]
    KEY_KIND_FINGERPRINT: _ClassVar[KeyKind]
    KEY_KIND_TENANT: _ClassVar[KeyKind]

class PostureLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POSTURE_LEVEL_UNSPECIFIED: _ClassVar[PostureLevel]
    POSTURE_LEVEL_LOW: _ClassVar[PostureLevel]
    POSTURE_LEVEL_ELEVATED: _ClassVar[PostureLevel]
    POSTURE_LEVEL_HIGH: _ClassVar[PostureLevel]
    POSTURE_LEVEL_CRITICAL: _ClassVar[PostureLevel]

class SignalKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIGNAL_KIND_UNSPECIFIED: _ClassVar[SignalKind]
    SIGNAL_KIND_IP: _ClassVar[SignalKind]
    SIGNAL_KIND_ASN: _ClassVar[SignalKind]
    SIGNAL_KIND_COUNTRY: _ClassVar[SignalKind]
    SIGNAL_KIND_SUBJECT: _ClassVar[SignalKind]
    SIGNAL_KIND_DEVICE: _ClassVar[SignalKind]
    SIGNAL_KIND_SESSION: _ClassVar[SignalKind]
COLLECTION_UNSPECIFIED: Collection
COLLECTION_POLICIES: Collection
COLLECTION_GRANTS: Collection
COLLECTION_SUBJECTS: Collection
COLLECTION_DEVICE_STATES: Collection
COLLECTION_REVOKED_SESSIONS: Collection
COLLECTION_KEYS: Collection
COLLECTION_POSTURES: Collection
COLLECTION_SETTINGS: Collection
COLLECTION_GRANT_CLASSES: Collection
COLLECTION_DEVICES: Collection
COLLECTION_SIGNALS: Collection
LANE_UNSPECIFIED: Lane
LANE_URGENT: Lane
LANE_BULK: Lane
EVIDENCE_UNSPECIFIED: Evidence
EVIDENCE_ASSERTED: Evidence
EVIDENCE_VERIFIED: Evidence
GRANT_STATE_UNSPECIFIED: GrantState
GRANT_STATE_ACTIVE: GrantState
GRANT_STATE_SUSPENDED: GrantState
GRANT_STATE_REVOKED: GrantState
GRANT_STATE_REQUESTED: GrantState
GRANT_STATE_APPROVED: GrantState
GRANT_STATE_EXPIRED: GrantState
GRANT_STATE_LAPSED: GrantState
GRANT_STATE_REJECTED: GrantState
GRANT_SCOPE_UNSPECIFIED: GrantScope
GRANT_SCOPE_SUBJECT: GrantScope
GRANT_SCOPE_ROLE: GrantScope
GRANT_SCOPE_DEVICE: GrantScope
CLASS_STATE_UNSPECIFIED: ClassState
CLASS_STATE_ACTIVE: ClassState
CLASS_STATE_SUSPENDED: ClassState
CLASS_STATE_REOPENING: ClassState
SUBJECT_STATE_UNSPECIFIED: SubjectState
SUBJECT_STATE_ACTIVE: SubjectState
SUBJECT_STATE_DISABLED: SubjectState
DEVICE_TRUST_UNSPECIFIED: DeviceTrust
DEVICE_TRUST_ACTIVE: DeviceTrust
DEVICE_TRUST_QUARANTINED: DeviceTrust
DEVICE_TRUST_REVOKED: DeviceTrust
KEY_KIND_UNSPECIFIED: KeyKind
KEY_KIND_ISSUER: KeyKind
KEY_KIND_FINGERPRINT: KeyKind
KEY_KIND_TENANT: KeyKind
POSTURE_LEVEL_UNSPECIFIED: PostureLevel
POSTURE_LEVEL_LOW: PostureLevel
POSTURE_LEVEL_ELEVATED: PostureLevel
POSTURE_LEVEL_HIGH: PostureLevel
POSTURE_LEVEL_CRITICAL: PostureLevel
SIGNAL_KIND_UNSPECIFIED: SignalKind
SIGNAL_KIND_IP: SignalKind
SIGNAL_KIND_ASN: SignalKind
SIGNAL_KIND_COUNTRY: SignalKind
SIGNAL_KIND_SUBJECT: SignalKind
SIGNAL_KIND_DEVICE: SignalKind
SIGNAL_KIND_SESSION: SignalKind

class Authentication(_message.Message):
    __slots__ = ("acr", "amr", "auth_time", "issuer")
    ACR_FIELD_NUMBER: _ClassVar[int]
    AMR_FIELD_NUMBER: _ClassVar[int]
    AUTH_TIME_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    acr: str
    amr: _containers.RepeatedScalarFieldContainer[str]
    auth_time: _timestamp_pb2.Timestamp
    issuer: str
    def __init__(self, acr: _Optional[str] = ..., amr: _Optional[_Iterable[str]] = ..., auth_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., issuer: _Optional[str] = ...) -> None: ...

class Amount(_message.Message):
    __slots__ = ("currency", "units", "nanos")
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    NANOS_FIELD_NUMBER: _ClassVar[int]
    currency: str
    units: int
    nanos: int
    def __init__(self, currency: _Optional[str] = ..., units: _Optional[int] = ..., nanos: _Optional[int] = ...) -> None: ...

class Requirement(_message.Message):
    __slots__ = ("acr", "max_age", "evidence")
    ACR_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    acr: str
    max_age: _duration_pb2.Duration
    evidence: Evidence
    def __init__(self, acr: _Optional[str] = ..., max_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., evidence: _Optional[_Union[Evidence, str]] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("name", "document", "source", "version", "update_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    document: str
    source: str
    version: int
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., document: _Optional[str] = ..., source: _Optional[str] = ..., version: _Optional[int] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Approval(_message.Message):
    __slots__ = ("actor", "time")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    actor: str
    time: _timestamp_pb2.Timestamp
    def __init__(self, actor: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GrantClass(_message.Message):
    __slots__ = ("id", "ceiling", "max_validity", "review_every", "approvals", "ticket_required", "budget_required", "condition_required", "scopes")
    ID_FIELD_NUMBER: _ClassVar[int]
    CEILING_FIELD_NUMBER: _ClassVar[int]
    MAX_VALIDITY_FIELD_NUMBER: _ClassVar[int]
    REVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    TICKET_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    BUDGET_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    CONDITION_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    id: str
    ceiling: Requirement
    max_validity: _duration_pb2.Duration
    review_every: _duration_pb2.Duration
    approvals: int
    ticket_required: bool
    budget_required: bool
    condition_required: bool
    scopes: _containers.RepeatedScalarFieldContainer[GrantScope]
    def __init__(self, id: _Optional[str] = ..., ceiling: _Optional[_Union[Requirement, _Mapping]] = ..., max_validity: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., review_every: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., approvals: _Optional[int] = ..., ticket_required: _Optional[bool] = ..., budget_required: _Optional[bool] = ..., condition_required: _Optional[bool] = ..., scopes: _Optional[_Iterable[_Union[GrantScope, str]]] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("name", "state", "subject", "role", "device", "actions", "start_time", "expire_time", "ceiling", "condition", "reason", "owner", "update_time", "ticket", "grant_class", "review_time", "budget", "requester", "approvals", "state_reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    CEILING_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    GRANT_CLASS_FIELD_NUMBER: _ClassVar[int]
    REVIEW_TIME_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    REQUESTER_FIELD_NUMBER: _ClassVar[int]
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: GrantState
    subject: str
    role: str
    device: str
    actions: _containers.RepeatedScalarFieldContainer[str]
    start_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    ceiling: Requirement
    condition: str
    reason: str
    owner: str
    update_time: _timestamp_pb2.Timestamp
    ticket: str
    grant_class: str
    review_time: _timestamp_pb2.Timestamp
    budget: Budget
    requester: str
    approvals: _containers.RepeatedCompositeFieldContainer[Approval]
    state_reason: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[GrantState, str]] = ..., subject: _Optional[str] = ..., role: _Optional[str] = ..., device: _Optional[str] = ..., actions: _Optional[_Iterable[str]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ceiling: _Optional[_Union[Requirement, _Mapping]] = ..., condition: _Optional[str] = ..., reason: _Optional[str] = ..., owner: _Optional[str] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ticket: _Optional[str] = ..., grant_class: _Optional[str] = ..., review_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., requester: _Optional[str] = ..., approvals: _Optional[_Iterable[_Union[Approval, _Mapping]]] = ..., state_reason: _Optional[str] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("max_count", "max_amount", "max_per_use", "max_elapsed")
    MAX_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_PER_USE_FIELD_NUMBER: _ClassVar[int]
    MAX_ELAPSED_FIELD_NUMBER: _ClassVar[int]
    max_count: int
    max_amount: Amount
    max_per_use: Amount
    max_elapsed: _duration_pb2.Duration
    def __init__(self, max_count: _Optional[int] = ..., max_amount: _Optional[_Union[Amount, _Mapping]] = ..., max_per_use: _Optional[_Union[Amount, _Mapping]] = ..., max_elapsed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GrantClassState(_message.Message):
    __slots__ = ("name", "state", "spot_check_rate", "held", "step", "trips", "since_time", "reason", "update_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SPOT_CHECK_RATE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TRIPS_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: ClassState
    spot_check_rate: float
    held: bool
    step: int
    trips: int
    since_time: _timestamp_pb2.Timestamp
    reason: str
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[ClassState, str]] = ..., spot_check_rate: _Optional[float] = ..., held: _Optional[bool] = ..., step: _Optional[int] = ..., trips: _Optional[int] = ..., since_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ClassBreaker(_message.Message):
    __slots__ = ("grant_class", "max_rate", "min_samples", "window", "reopen_after", "steps")
    GRANT_CLASS_FIELD_NUMBER: _ClassVar[int]
    MAX_RATE_FIELD_NUMBER: _ClassVar[int]
    MIN_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    REOPEN_AFTER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    grant_class: str
    max_rate: float
    min_samples: int
    window: _duration_pb2.Duration
    reopen_after: _duration_pb2.Duration
    steps: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, grant_class: _Optional[str] = ..., max_rate: _Optional[float] = ..., min_samples: _Optional[int] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reopen_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., steps: _Optional[_Iterable[float]] = ...) -> None: ...

class SuspectDevice(_message.Message):
    __slots__ = ("device", "guard", "since_time", "expire_time")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    GUARD_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    device: str
    guard: str
    since_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, device: _Optional[str] = ..., guard: _Optional[str] = ..., since_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Subject(_message.Message):
    __slots__ = ("name", "state", "roles", "methods", "recover_time", "failed_attempts", "update_time", "sim_change_time", "authenticator_change_time", "strong_authentication_time", "device_register_time", "suspects")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    RECOVER_TIME_FIELD_NUMBER: _ClassVar[int]
    FAILED_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SIM_CHANGE_TIME_FIELD_NUMBER: _ClassVar[int]
    AUTHENTICATOR_CHANGE_TIME_FIELD_NUMBER: _ClassVar[int]
    STRONG_AUTHENTICATION_TIME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_REGISTER_TIME_FIELD_NUMBER: _ClassVar[int]
    SUSPECTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: SubjectState
    roles: _containers.RepeatedScalarFieldContainer[str]
    methods: _containers.RepeatedScalarFieldContainer[str]
    recover_time: _timestamp_pb2.Timestamp
    failed_attempts: int
    update_time: _timestamp_pb2.Timestamp
    sim_change_time: _timestamp_pb2.Timestamp
    authenticator_change_time: _timestamp_pb2.Timestamp
    strong_authentication_time: _timestamp_pb2.Timestamp
    device_register_time: _timestamp_pb2.Timestamp
    suspects: _containers.RepeatedCompositeFieldContainer[SuspectDevice]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[SubjectState, str]] = ..., roles: _Optional[_Iterable[str]] = ..., methods: _Optional[_Iterable[str]] = ..., recover_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., failed_attempts: _Optional[int] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., sim_change_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., authenticator_change_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., strong_authentication_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., device_register_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., suspects: _Optional[_Iterable[_Union[SuspectDevice, _Mapping]]] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "subject", "components", "versions", "key_id", "jkt", "create_time", "validate_time", "authentications", "fingerprint")
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
    class FingerprintEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    JKT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    AUTHENTICATIONS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    subject: str
    components: _containers.ScalarMap[str, bytes]
    versions: _containers.ScalarMap[str, int]
    key_id: str
    jkt: str
    create_time: _timestamp_pb2.Timestamp
    validate_time: _timestamp_pb2.Timestamp
    authentications: _containers.RepeatedCompositeFieldContainer[Authentication]
    fingerprint: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., subject: _Optional[str] = ..., components: _Optional[_Mapping[str, bytes]] = ..., versions: _Optional[_Mapping[str, int]] = ..., key_id: _Optional[str] = ..., jkt: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., validate_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., authentications: _Optional[_Iterable[_Union[Authentication, _Mapping]]] = ..., fingerprint: _Optional[_Mapping[str, str]] = ...) -> None: ...

class DeviceState(_message.Message):
    __slots__ = ("name", "subject", "trust", "reason", "update_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    subject: str
    trust: DeviceTrust
    reason: str
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., subject: _Optional[str] = ..., trust: _Optional[_Union[DeviceTrust, str]] = ..., reason: _Optional[str] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RevokedSession(_message.Message):
    __slots__ = ("name", "subject", "reason", "revoke_time", "expire_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REVOKE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    subject: str
    reason: str
    revoke_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., subject: _Optional[str] = ..., reason: _Optional[str] = ..., revoke_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("name", "kind", "issuer", "jwk", "secret", "start_time", "expire_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    JWK_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: KeyKind
    issuer: str
    jwk: str
    secret: bytes
    start_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[KeyKind, str]] = ..., issuer: _Optional[str] = ..., jwk: _Optional[str] = ..., secret: _Optional[bytes] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Posture(_message.Message):
    __slots__ = ("name", "level", "exemptions_off", "reason", "update_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    EXEMPTIONS_OFF_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    level: PostureLevel
    exemptions_off: bool
    reason: str
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., level: _Optional[_Union[PostureLevel, str]] = ..., exemptions_off: _Optional[bool] = ..., reason: _Optional[str] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Issuer(_message.Message):
    __slots__ = ("issuer", "audiences", "max_acrs", "algorithms")
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    AUDIENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_ACRS_FIELD_NUMBER: _ClassVar[int]
    ALGORITHMS_FIELD_NUMBER: _ClassVar[int]
    issuer: str
    audiences: _containers.RepeatedScalarFieldContainer[str]
    max_acrs: _containers.RepeatedScalarFieldContainer[str]
    algorithms: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, issuer: _Optional[str] = ..., audiences: _Optional[_Iterable[str]] = ..., max_acrs: _Optional[_Iterable[str]] = ..., algorithms: _Optional[_Iterable[str]] = ...) -> None: ...

class AcrEdge(_message.Message):
    __slots__ = ("higher", "lower")
    HIGHER_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    higher: str
    lower: str
    def __init__(self, higher: _Optional[str] = ..., lower: _Optional[str] = ...) -> None: ...

class Method(_message.Message):
    __slots__ = ("id", "acr", "amr", "rank")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACR_FIELD_NUMBER: _ClassVar[int]
    AMR_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    id: str
    acr: str
    amr: _containers.RepeatedScalarFieldContainer[str]
    rank: int
    def __init__(self, id: _Optional[str] = ..., acr: _Optional[str] = ..., amr: _Optional[_Iterable[str]] = ..., rank: _Optional[int] = ...) -> None: ...

class FingerprintComponent(_message.Message):
    __slots__ = ("id", "kind", "weight", "must_match", "max_rise")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[FingerprintComponent.Kind]
        KIND_EXACT: _ClassVar[FingerprintComponent.Kind]
        KIND_VERSION: _ClassVar[FingerprintComponent.Kind]
    KIND_UNSPECIFIED: FingerprintComponent.Kind
    KIND_EXACT: FingerprintComponent.Kind
    KIND_VERSION: FingerprintComponent.Kind
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MUST_MATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_RISE_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: FingerprintComponent.Kind
    weight: int
    must_match: bool
    max_rise: int
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[FingerprintComponent.Kind, str]] = ..., weight: _Optional[int] = ..., must_match: _Optional[bool] = ..., max_rise: _Optional[int] = ...) -> None: ...

class RateLimit(_message.Message):
    __slots__ = ("per_second", "burst", "hard_factor")
    PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    BURST_FIELD_NUMBER: _ClassVar[int]
    HARD_FACTOR_FIELD_NUMBER: _ClassVar[int]
    per_second: float
    burst: int
    hard_factor: float
    def __init__(self, per_second: _Optional[float] = ..., burst: _Optional[int] = ..., hard_factor: _Optional[float] = ...) -> None: ...

class RateLimits(_message.Message):
    __slots__ = ("subject", "device", "caller")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    subject: RateLimit
    device: RateLimit
    caller: RateLimit
    def __init__(self, subject: _Optional[_Union[RateLimit, _Mapping]] = ..., device: _Optional[_Union[RateLimit, _Mapping]] = ..., caller: _Optional[_Union[RateLimit, _Mapping]] = ...) -> None: ...

class ChangeControl(_message.Message):
    __slots__ = ("policies", "keys", "settings", "posture", "kill_switch", "blocks", "proposal_lifetime")
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    POSTURE_FIELD_NUMBER: _ClassVar[int]
    KILL_SWITCH_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_LIFETIME_FIELD_NUMBER: _ClassVar[int]
    policies: bool
    keys: bool
    settings: bool
    posture: bool
    kill_switch: bool
    blocks: bool
    proposal_lifetime: _duration_pb2.Duration
    def __init__(self, policies: _Optional[bool] = ..., keys: _Optional[bool] = ..., settings: _Optional[bool] = ..., posture: _Optional[bool] = ..., kill_switch: _Optional[bool] = ..., blocks: _Optional[bool] = ..., proposal_lifetime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("name", "acr_edges", "issuers", "methods", "fingerprint", "min_similarity", "top_requirement", "risk_ceiling", "clock_skew", "update_time", "grant_classes", "cool_off", "rate_limits", "change_control", "breakers", "device_register_within")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACR_EDGES_FIELD_NUMBER: _ClassVar[int]
    ISSUERS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MIN_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    TOP_REQUIREMENT_FIELD_NUMBER: _ClassVar[int]
    RISK_CEILING_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SKEW_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    GRANT_CLASSES_FIELD_NUMBER: _ClassVar[int]
    COOL_OFF_FIELD_NUMBER: _ClassVar[int]
    RATE_LIMITS_FIELD_NUMBER: _ClassVar[int]
    CHANGE_CONTROL_FIELD_NUMBER: _ClassVar[int]
    BREAKERS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_REGISTER_WITHIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    acr_edges: _containers.RepeatedCompositeFieldContainer[AcrEdge]
    issuers: _containers.RepeatedCompositeFieldContainer[Issuer]
    methods: _containers.RepeatedCompositeFieldContainer[Method]
    fingerprint: _containers.RepeatedCompositeFieldContainer[FingerprintComponent]
    min_similarity: float
    top_requirement: Requirement
    risk_ceiling: int
    clock_skew: _duration_pb2.Duration
    update_time: _timestamp_pb2.Timestamp
    grant_classes: _containers.RepeatedCompositeFieldContainer[GrantClass]
    cool_off: _duration_pb2.Duration
    rate_limits: RateLimits
    change_control: ChangeControl
    breakers: _containers.RepeatedCompositeFieldContainer[ClassBreaker]
    device_register_within: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., acr_edges: _Optional[_Iterable[_Union[AcrEdge, _Mapping]]] = ..., issuers: _Optional[_Iterable[_Union[Issuer, _Mapping]]] = ..., methods: _Optional[_Iterable[_Union[Method, _Mapping]]] = ..., fingerprint: _Optional[_Iterable[_Union[FingerprintComponent, _Mapping]]] = ..., min_similarity: _Optional[float] = ..., top_requirement: _Optional[_Union[Requirement, _Mapping]] = ..., risk_ceiling: _Optional[int] = ..., clock_skew: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., grant_classes: _Optional[_Iterable[_Union[GrantClass, _Mapping]]] = ..., cool_off: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., rate_limits: _Optional[_Union[RateLimits, _Mapping]] = ..., change_control: _Optional[_Union[ChangeControl, _Mapping]] = ..., breakers: _Optional[_Iterable[_Union[ClassBreaker, _Mapping]]] = ..., device_register_within: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Signal(_message.Message):
    __slots__ = ("name", "kind", "value", "source", "score", "confidence", "expire_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: SignalKind
    value: str
    source: str
    score: int
    confidence: int
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[SignalKind, str]] = ..., value: _Optional[str] = ..., source: _Optional[str] = ..., score: _Optional[int] = ..., confidence: _Optional[int] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Resource(_message.Message):
    __slots__ = ("policy", "grant", "subject", "device_state", "revoked_session", "key", "posture", "settings", "grant_class_state", "device", "signal")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_STATE_FIELD_NUMBER: _ClassVar[int]
    REVOKED_SESSION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    POSTURE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    GRANT_CLASS_STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    grant: Grant
    subject: Subject
    device_state: DeviceState
    revoked_session: RevokedSession
    key: Key
    posture: Posture
    settings: Settings
    grant_class_state: GrantClassState
    device: Device
    signal: Signal
    def __init__(self, policy: _Optional[_Union[Policy, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., subject: _Optional[_Union[Subject, _Mapping]] = ..., device_state: _Optional[_Union[DeviceState, _Mapping]] = ..., revoked_session: _Optional[_Union[RevokedSession, _Mapping]] = ..., key: _Optional[_Union[Key, _Mapping]] = ..., posture: _Optional[_Union[Posture, _Mapping]] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., grant_class_state: _Optional[_Union[GrantClassState, _Mapping]] = ..., device: _Optional[_Union[Device, _Mapping]] = ..., signal: _Optional[_Union[Signal, _Mapping]] = ...) -> None: ...

class Revision(_message.Message):
    __slots__ = ("epoch", "revision")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    revision: int
    def __init__(self, epoch: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...
