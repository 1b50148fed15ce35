"""What rate limits must satisfy before they are stored."""

from __future__ import annotations

from typing import Final

from sidestep.v1 import resources_pb2 as pb

from engine.errors import InvalidInputError

MAX_TOKENS: Final = 1_000_000
MAX_HARD_FACTOR: Final = 1000


def check_rate_limits(limits: pb.RateLimits, field: str) -> None:
    """Raises InvalidInputError naming the field."""
    for kind in ("subject", "device", "caller"):
        if not limits.HasField(kind):
            continue
        limit: pb.RateLimit = getattr(limits, kind)
        where = f"{field}.{kind}"
        # Negated, so that NaN is refused too.
        if not 0 < limit.per_second <= MAX_TOKENS:
            raise InvalidInputError(
                f"{where}.per_second", f"{limit.per_second:g} is not above 0 and at most {MAX_TOKENS:,}"
            )
        if not 1 <= limit.burst <= MAX_TOKENS:
            raise InvalidInputError(f"{where}.burst", f"{limit.burst} is not between 1 and {MAX_TOKENS:,}")
        if limit.HasField("hard_factor") and not 1 <= limit.hard_factor <= MAX_HARD_FACTOR:
            raise InvalidInputError(
                f"{where}.hard_factor", f"{limit.hard_factor:g} is not between 1 and {MAX_HARD_FACTOR:,}"
            )
