"""What both clients share: the channel, the two methods, and how a call becomes a question."""

from __future__ import annotations

import logging
import math
from typing import Final

from sidestep.client._decision import FailMode
from sidestep.client._question import Question, QuestionFields

DEFAULT_ADDRESS: Final = "127.0.0.1:9191"
"""Where a sidecar listens unless told otherwise."""
DEFAULT_TIMEOUT_S: Final = 0.25
"""How long a call may take, connecting included."""

EVALUATE: Final = "/sidestep.v1.DecisionService/Evaluate"
EVALUATE_BATCH: Final = "/sidestep.v1.DecisionService/EvaluateBatch"

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A restarted sidecar is used at once: it is on this machine, so trying often costs nothing.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Also the time a connection may take to establish: a busy sidecar may be slow, the call's own deadline is shorter.
    ("grpc.min_reconnect_backoff_ms", 1000),
    # The answer in time is worth more than a second try.
    ("grpc.enable_retries", 0),
    # The sidecar is local: no proxy of the environment and no service config of some resolver may come between.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
)

_log = logging.getLogger("sidestep.client")


def check_settings(address: str, timeout_s: float, fail_mode: FailMode) -> None:
    """Refuses settings that cannot work, with ValueError, and says aloud that failing open was chosen."""
    if not address:
        raise ValueError("address: must not be empty")
    check_timeout(timeout_s)
    if fail_mode is FailMode.ALLOW:
        _log.warning("fail mode ALLOW: actions go on without step-up whenever the sidecar does not answer")


def check_timeout(timeout_s: float) -> float:
    """The timeout, if it is a positive number of seconds; else ValueError."""
    if not 0 < timeout_s < math.inf:
        raise ValueError("timeout_s: a positive number of seconds needed")
    return timeout_s


def asked(question: Question | None, fields: QuestionFields) -> Question:
    """The question of a call, given whole or as its fields. TypeError: given both ways, or a field is missing."""
    if question is None:
        return Question(**fields)
    if fields:
        raise TypeError(f"the question is given already; not also as {', '.join(fields)}")
    return question
