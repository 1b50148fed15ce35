"""Repeated requests: which `request_id` was answered how, for the few minutes in which a caller may try again.

A repeat gets the first answer, with its decision id, as long as a decision on the data of now would say the same. So a retry
spends nothing and is recorded once, and yet no ALLOW outlives a revocation.
"""

from __future__ import annotations

import threading
from hashlib import blake2b
from typing import Final

import msgspec
from sidestep.v1 import decision_pb2

from engine.decision import Decision
from engine.errors import InvalidInputError

KEEP_S: Final = 300.0
"""How long a repeat is recognised."""
MAX_KEPT: Final = 4096
"""Requests a worker remembers. The oldest go first; a repeat of one that is gone is a new request."""
_HASH_BYTES: Final = 16


class Kept(msgspec.Struct, eq=False):
    """One request that came with a `request_id`. `answer`: None until its record is in the journal; then never changed.
    `decision`: None if another worker is deciding it."""

    key: bytes
    content: bytes
    # By time.monotonic().
    until: float
    decision: Decision | None
    answer: bytes | None = None
    # It was taken back, or could not be recorded: the next one is the first.
    dropped: bool = False
    # Of the pod's memory only. Where that has no answer, one is made for this decision.
    decision_id: bytes = b""

    def settled(self) -> bool:
        """Whether nothing about it will change any more."""
        return self.answer is not None or self.dropped


class Repeats:
    """What the loops of one worker remember. Thread-safe; the lock is held for a few instructions."""

    def __init__(self, *, keep_s: float = KEEP_S, max_kept: int = MAX_KEPT) -> None:
        self._keep_s = keep_s
        self._max_kept = max_kept
        # Oldest first.
        self._kept: dict[bytes, Kept] = {}
        self._lock = threading.Lock()

    def find(self, key: bytes, content: bytes, now: float) -> Kept | None:
        """The request that came first with this key, None if there was none. `now`: time.monotonic().

        Raises InvalidInputError if it asked something else.
        """
        kept = self._kept.get(key)
        if kept is None or kept.dropped or now >= kept.until:
            return None
        if kept.content != content:
            raise different()
        return kept

    def begin(self, key: bytes, content: bytes, decision: Decision, now: float) -> Kept | None:
        """Remembers a request that was decided and is about to be recorded. None: another loop was first."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None and not found.settled() and now < found.until:
                return None
            self._kept.pop(key, None)
            kept = self._kept[key] = Kept(key, content, now + self._keep_s, decision)
            while len(self._kept) > self._max_kept or next(iter(self._kept.values())).until <= now:
                oldest = next(iter(self._kept))
                if oldest == key:
                    break
                del self._kept[oldest]
        return kept

    def drop(self, kept: Kept) -> None:
        """It was not recorded as it was decided: whoever comes next with its key is decided anew."""
        with self._lock:
            kept.dropped = True
            if self._kept.get(kept.key) is kept:
                del self._kept[kept.key]

    def __len__(self) -> int:
        return len(self._kept)


def repeat_key(caller: str, tenant: str, subject: str, request_id: str) -> bytes:
    """What two requests have in common of which one is a repeat. 16 bytes."""
    return _hash(b"\0".join(part.encode() for part in (caller, tenant, subject, request_id)))


def content_of(request: decision_pb2.EvaluateRequest) -> bytes:
    """What is asked, as a hash: action, resource, amount and attributes. 16 bytes.

    Evidence is not part of it: after a step-up the same operation comes back with another token, and each time it is weighed
    anew.
    """
    context = request.context
    asked = decision_pb2.EvaluateRequest(
        subject=request.subject,
        action=request.action,
        resource=request.resource if request.HasField("resource") else None,
        context=decision_pb2.Context(
            amount=context.amount if context.HasField("amount") else None,
            attributes=context.attributes if context.HasField("attributes") else None,
        ),
    )
    # Deterministic: maps come in any order.
    return _hash(asked.SerializeToString(deterministic=True))


def same(first: Decision, second: Decision) -> bool:
    """Whether a repeat may have the first one's answer. What depends on the second it was decided in does not count."""
    return (
        first.outcome is second.outcome
        and first.basis is second.basis
        and first.grant == second.grant
        and first.achieved_acr == second.achieved_acr
        and first.waived_acrs == second.waived_acrs
        and first.requirement.acrs == second.requirement.acrs
        and first.requirement.evidence is second.requirement.evidence
        and _asked(first) == _asked(second)
    )


def _asked(decision: Decision) -> object:
    challenge = decision.challenge
    return challenge and (challenge.methods, challenge.acr_values, challenge.invalid_token)


def different() -> InvalidInputError:
    """The error for a request that is no repeat, though its id says so."""
    return InvalidInputError(
        "request_id", "was given with another action, resource, amount or attribute a short while ago"
    )


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=_HASH_BYTES).digest()
