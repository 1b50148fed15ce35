"""Devices of a subject that the control plane found suspect over the whole fleet, as findings of guards."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf
from typing import Final, NamedTuple

from sidestep.v1 import resources_pb2

from engine.facts import Finding
from sidecar.gather.tenant import moment

CODE: Final = "SEEN_ACROSS_PODS"


class Suspect(NamedTuple):
    """One mark. `guard`: the finding's name. `since` None: not known, so that no authentication is later."""

    device: str
    guard: str
    since: float | None
    until: float


@lru_cache(4096)
def parse_suspects(subject: bytes) -> tuple[Suspect, ...]:
    """The marks in a stored Subject."""
    record = resources_pb2.Subject()
    record.ParseFromString(subject)
    return tuple(
        Suspect(
            each.device,
            each.guard,
            moment(each.since_time, each.HasField("since_time")),
            each.expire_time.ToNanoseconds() / 1e9 if each.HasField("expire_time") else inf,
        )
        for each in record.suspects
    )


def findings(suspects: tuple[Suspect, ...], ruled_out: Callable[[str], bool], now: float) -> tuple[Finding, ...]:
    """What counts against a request that proves no key. `ruled_out`: whether its evidence shows it is not that device; leaving
    evidence out rules nothing out."""
    return tuple(
        Finding(each.guard, 1.0, CODE, now if each.since is None else each.since)
        for each in suspects
        if now < each.until and not ruled_out(each.device)
    )
