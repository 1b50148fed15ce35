"""Rate limits of a request: whose buckets it takes from, and what comes of it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from engine.facts import Binding
from sidecar.gather.gatherer import Gathered
from sidecar.guard.buckets import Buckets, Limit, Limits, RateLimitedError, draw, fill, wait_s
from sidecar.guard.seen import Shown
from sidecar.page import LIMIT_EFFECTS, LIMITED, WorkerSlot, WorkerWord

_BOUND: Final = Binding.BOUND
_RECOGNISED: Final = Binding.RECOGNISED
# By what buckets are kept apart; small numbers, since hashing an enumeration's member takes longer than all else here.
_OF_BOUND, _OF_RECOGNISED, _OF_UNKNOWN = range(3)
_NO_EXEMPTION, _REFUSED = (LIMIT_EFFECTS.index(effect) for effect in ("no_exemption", "refused"))


class Limiter:
    """Buckets per subject, device and calling service. Not thread-safe.

    As with findings (see track.py) each kind of device evidence has buckets of its own, and a recognised device is also
    limited by those of the bound one it could be: leaving the key's proof out is no way to further exemptions.
    """

    def __init__(self, entries: int, slot: WorkerSlot | None) -> None:
        self._subjects = Buckets(entries)
        self._devices = Buckets(entries)
        self._callers = Buckets(entries)
        self._slot = slot

    def __len__(self) -> int:
        return len(self._subjects) + len(self._devices) + len(self._callers)

    def take(self, limits: Limits, gathered: Gathered, subject: str, shown: Shown, caller: str) -> str:
        """Takes a token each. The limit that was exceeded, for `Facts.rate_limited`; empty if none was.

        Raises RateLimitedError over a hard limit, and then takes no token.
        """
        facts = gathered.facts
        tenant, now, binding = facts.tenant, facts.now, facts.device.binding
        kind = _OF_BOUND if binding is _BOUND else _OF_RECOGNISED if binding is _RECOGNISED else _OF_UNKNOWN
        wanted: list[tuple[str, Buckets, Limit, tuple[Hashable, ...], list[float]]] = []
        key: tuple[Hashable, ...]
        if limits.subject is not None:
            key = (tenant, subject, kind)
            wanted.append(("subject", self._subjects, limits.subject, key, self._subjects.held(key)))
        if limits.device is not None and (kind != _OF_UNKNOWN or shown.values):
            key = (tenant, facts.device.id if kind != _OF_UNKNOWN else shown.key, kind)
            wanted.append(("device", self._devices, limits.device, key, self._devices.held(key)))
        if limits.caller is not None:
            key = (tenant, caller)
            wanted.append(("caller", self._callers, limits.caller, key, self._callers.held(key)))
        # An unknown device gets no exemption anyway.
        full = kind != _OF_RECOGNISED
        for name, _, limit, _, held in wanted:
            if held[0] > now or held[1] > now:
                full = False
                if (after_s := wait_s(held, limit, now)) > 0.0:
                    self._count(name, _REFUSED)
                    raise RateLimitedError(name, after_s)
        if full:
            for _, _, limit, _, held in wanted:
                fill(held, limit, now)
            return ""
        exceeded = ""
        for name, buckets, limit, key, held in wanted:
            if draw(held, limit, now) or (
                kind == _OF_RECOGNISED and name != "caller" and buckets.empty((*key[:-1], _OF_BOUND), limit, now)
            ):
                self._count(name, _NO_EXEMPTION)
                exceeded = exceeded or name
        return exceeded

    def _count(self, limit: str, effect: int) -> None:
        if self._slot is not None:
            self._slot.add(WorkerWord.LIMITED, 1, LIMITED.index(limit) * len(LIMIT_EFFECTS) + effect)
