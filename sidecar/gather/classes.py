"""How classes of grants stand, as it is stored."""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.message import DecodeError
from sidestep.v1 import resources_pb2


class ClassStanding(NamedTuple):
    """How the breaker of a class of grants stands, as far as its grants are concerned."""

    suspended: bool = False
    spot_check_rate: float = 0.0


SOUND = ClassStanding()
_UNREADABLE = ClassStanding(suspended=True)


def class_standing(value: bytes) -> ClassStanding:
    """A stored GrantClassState. One that cannot be read whole is suspended: what a newer control plane added may be a bound."""
    record = resources_pb2.GrantClassState()
    try:
        record.ParseFromString(value)
    except DecodeError:
        return _UNREADABLE
    size = record.ByteSize()
    record.DiscardUnknownFields()
    rate = record.spot_check_rate
    # Negated, so that NaN is unreadable too.
    if record.ByteSize() != size or not 0.0 <= rate <= 1.0:
        return _UNREADABLE
    if record.state not in (resources_pb2.CLASS_STATE_ACTIVE, resources_pb2.CLASS_STATE_REOPENING):
        return _UNREADABLE
    return ClassStanding(spot_check_rate=rate)
