"""The methods a worker serves, and the numbers calls carry for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from sidecar.callers import Caller
from sidecar.front.health import HEALTH_SERVICE
from sidecar.front.servicer import MAX_ENTRIES, SERVICE
from sidecar.front.transport import Method

EVALUATE, EVALUATE_BATCH, CHECK, LIST, WATCH, OTHERS = range(6)
"""Numbers of the methods; from OTHERS on, those that are answered beside the loop."""

_BATCH_BYTES: Final = 4 << 20
_HEALTH_BYTES: Final = 1024


class OtherCall(NamedTuple):
    """A further method of DecisionService: its bytes and its caller to the answer's bytes, in another thread than the
    loop's. What it raises is told by `front/errors.py`. `max_bytes`: of its messages."""

    rpc: str
    max_bytes: int
    answer: Callable[[bytes, Caller | None], bytes]


def methods(max_message_bytes: int, others: Sequence[OtherCall] = ()) -> tuple[Method, ...]:
    """All methods, in the order of their numbers. `others`: as the loop has them."""
    return (
        Method(f"/{SERVICE}/Evaluate", max_message_bytes),
        Method(f"/{SERVICE}/EvaluateBatch", max(max_message_bytes, min(MAX_ENTRIES * max_message_bytes, _BATCH_BYTES))),
        Method(f"/{HEALTH_SERVICE}/Check", _HEALTH_BYTES),
        Method(f"/{HEALTH_SERVICE}/List", _HEALTH_BYTES),
        Method(f"/{HEALTH_SERVICE}/Watch", _HEALTH_BYTES, streaming=True),
        *(Method(f"/{SERVICE}/{other.rpc}", other.max_bytes) for other in others),
    )
