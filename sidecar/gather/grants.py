"""Exemption grants as they are stored, and the draw of the spot check."""

from __future__ import annotations

import hmac
from functools import lru_cache

from google.protobuf.message import DecodeError
from sidestep.v1 import resources_pb2

from engine.classes import class_name
from engine.facts import Grant, GrantScope
from engine.lifecycle import counted
from sidecar.gather.classes import ClassStanding
from sidecar.gather.tenant import moment

_DAY_S = 86400.0


@lru_cache(4096)
def parse_grant(grant_id: str, value: bytes) -> Grant | None:
    """A stored grant; None if it has no scope or cannot be read whole, and then it exempts nobody: what a newer control plane
    added to it may be a bound."""
    record = resources_pb2.Grant()
    try:
        record.ParseFromString(value)
    except DecodeError:
        return None
    size = record.ByteSize()
    record.DiscardUnknownFields()
    if record.ByteSize() != size:
        return None
    scope = record.WhichOneof("scope")
    if (
        record.HasField("budget")
        or scope is None
        or not record.HasField("ceiling")
        or not record.ceiling.HasField("max_age")
    ):
        return None
    max_age = record.ceiling.max_age
    return Grant(
        id=grant_id,
        scope=GrantScope(scope),
        actions=tuple(record.actions),
        ceiling_acr=record.ceiling.acr,
        ceiling_max_age_s=max_age.seconds + max_age.nanos / 1e9,
        active=record.state == resources_pb2.GRANT_STATE_ACTIVE,
        start_at=moment(record.start_time, record.HasField("start_time")),
        expire_at=moment(record.expire_time, record.HasField("expire_time")),
        condition=record.condition,
        grant_class=class_name(record.grant_class),
        review_at=moment(record.review_time, record.HasField("review_time")),
        approvals=counted(record.requester, (approval.actor for approval in record.approvals)),
    )


def drawn(grant: Grant, draw: float, standing: ClassStanding) -> Grant:
    """The grant with its draw for this request, and with how its class stands."""
    return Grant(
        grant.id,
        grant.scope,
        grant.actions,
        grant.ceiling_acr,
        grant.ceiling_max_age_s,
        grant.active,
        grant.start_at,
        grant.expire_at,
        grant.condition,
        draw,
        grant.grant_class,
        grant.review_at,
        grant.approvals,
        standing.suspended,
        standing.spot_check_rate,
    )


@lru_cache(4096)
def spot_draw(secret: bytes | None, tenant: str, subject: str, device_id: str, grant_id: str, day: int) -> float:
    """Uniform in [0, 1), the same for a day, so that retrying does not redraw. Without a usable secret 0: always checked."""
    if secret is None:
        return 0.0
    parts = (tenant, subject, device_id, grant_id, str(day))
    digest = hmac.digest(secret, b"spot-check\0" + "\0".join(parts).encode(), "sha256")
    return int.from_bytes(digest[:6], "big") / 2**48


def day_of(now: float) -> int:
    """The UTC day, counted from 1970, for which a draw holds."""
    return int(now // _DAY_S)
