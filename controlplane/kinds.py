"""Which message each collection holds, and what it is called in `sidestep.v1.Resource`."""

from __future__ import annotations

from typing import Any, NamedTuple

from sidestep.v1 import resources_pb2 as pb

from engine.names import Collection


class Kind(NamedTuple):
    """A collection's records: their field in `Resource` (and name in errors) and their message."""

    field: str
    message: type[Any]


KINDS: dict[Collection, Kind] = {
    Collection.POLICIES: Kind("policy", pb.Policy),
    Collection.GRANTS: Kind("grant", pb.Grant),
    Collection.SUBJECTS: Kind("subject", pb.Subject),
    Collection.DEVICE_STATES: Kind("device_state", pb.DeviceState),
    Collection.REVOKED_SESSIONS: Kind("revoked_session", pb.RevokedSession),
    Collection.KEYS: Kind("key", pb.Key),
    Collection.POSTURES: Kind("posture", pb.Posture),
    Collection.SETTINGS: Kind("settings", pb.Settings),
    Collection.GRANT_CLASSES: Kind("grant_class_state", pb.GrantClassState),
    Collection.DEVICES: Kind("device", pb.Device),
    Collection.SIGNALS: Kind("signal", pb.Signal),
}
