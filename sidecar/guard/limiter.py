"""Rate limits of a request: whose buckets it takes from, and what comes of it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from engine.facts import Binding, Facts
from sidecar.gather.gatherer import Gathered
from sidecar.guard.buckets import Buckets, Limit, Limits, RateLimitedError, draw, fill, wait_s
from sidecar.guard.seen import Shown
from sidecar.page import LIMIT_EFFECTS, LIMITED, WorkerSlot, WorkerWord

_SURER: Final = {
    Binding.BOUND: (),
    Binding.RECOGNISED: (Binding.BOUND,),
    # It gets no exemption anyway.
    Binding.UNKNOWN: (),
}
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
        facts, now = gathered.facts, gathered.facts.now
        wanted: list[tuple[str, Buckets, Limit, Hashable, list[float]]] = []
        kind = facts.device.binding
        if limits.subject is not None:
            key: Hashable = (facts.tenant, subject, kind)
            wanted.append(("subject", self._subjects, limits.subject, key, self._subjects.held(key)))
        if limits.device is not None:
            device = _device(facts, shown, kind)
            if device is not None:
                wanted.append(("device", self._devices, limits.device, device, self._devices.held(device)))
        if limits.caller is not None:
            key = (facts.tenant, caller)
            wanted.append(("caller", self._callers, limits.caller, key, self._callers.held(key)))
        for name, _, limit, _, held in wanted:
            if held[1] > now and (after_s := wait_s(held, limit, now)) > 0.0:
                self._count(name, _REFUSED)
                raise RateLimitedError(name, after_s)
        exceeded, surer = "", _SURER[kind]
        for name, buckets, limit, key, held in wanted:
            if not surer and held[0] <= now and held[1] <= now:
                fill(held, limit, now)
            elif draw(held, limit, now) or (
                surer and name != "caller" and any(buckets.empty(self._as(key, each), limit, now) for each in surer)
            ):
                self._count(name, _NO_EXEMPTION)
                exceeded = exceeded or name
        return exceeded

    def _as(self, key: Hashable, kind: Binding) -> Hashable:
        assert isinstance(key, tuple)
        return (*key[:-1], kind)

    def _count(self, limit: str, effect: int) -> None:
        if self._slot is not None:
            self._slot.add(WorkerWord.LIMITED, 1, LIMITED.index(limit) * len(LIMIT_EFFECTS) + effect)


def _device(facts: Facts, shown: Shown, kind: Binding) -> Hashable | None:
    """None: there is no device to speak of."""
    if kind is not Binding.UNKNOWN:
        return (facts.tenant, facts.device.id, kind)
    return (facts.tenant, shown.key, kind) if shown.values else None
