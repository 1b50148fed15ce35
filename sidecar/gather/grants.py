"""Exemption grants as they are stored, and the draw of the spot check."""

from __future__ import annotations

import hmac
from functools import lru_cache

from google.protobuf.message import DecodeError
from msgspec.structs import replace
from sidestep.v1 import resources_pb2

from engine.classes import class_name
from engine.facts import Budget, BudgetHeld, Grant, GrantScope
from engine.lifecycle import counted
from engine.money import MAX_BUDGET_NANOS, to_nanos
from sidecar.gather.classes import SOUND, ClassStanding
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
    if scope is None or not record.HasField("ceiling") or not record.ceiling.HasField("max_age"):
        return None
    budget = None
    if record.HasField("budget"):
        budget = parse_budget(record.budget)
        if budget is None:
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
        budget=budget,
    )


def parse_budget(record: resources_pb2.Budget) -> Budget | None:
    """A stored budget; None if it limits nothing or contradicts itself: then the grant exempts nobody."""
    amounts = [getattr(record, field) if record.HasField(field) else None for field in ("max_amount", "max_per_use")]
    currencies = {amount.currency for amount in amounts if amount is not None}
    in_all, per_use = (None if amount is None else to_nanos(amount.units, amount.nanos) for amount in amounts)
    if len(currencies) > 1 or any(
        nanos is not None and not 0 < nanos <= MAX_BUDGET_NANOS for nanos in (in_all, per_use)
    ):
        return None
    if not (amounts[0] or amounts[1] or record.max_count or record.HasField("max_elapsed")):
        return None
    elapsed = record.max_elapsed
    return Budget(
        max_uses=record.max_count or None,
        max_nanos=in_all,
        max_nanos_per_use=per_use,
        currency=currencies.pop() if currencies else "",
        max_elapsed_s=elapsed.seconds + elapsed.nanos / 1e9 if record.HasField("max_elapsed") else None,
    )


def drawn(grant: Grant, draw: float, held: BudgetHeld | None = None, standing: ClassStanding = SOUND) -> Grant:
    """The grant with its draw for this request, what is held of its budget, and how its class stands."""
    budget = grant.budget
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
        replace(budget, held=held) if budget is not None and held is not None else budget,
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
