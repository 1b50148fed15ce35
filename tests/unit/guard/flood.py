"""A flood of distinct subjects, devices and networks thrown at the whole guard, and how much memory it may take."""

from __future__ import annotations

from typing import Final

from sidecar.guard.buckets import Limit, Limits
from sidecar.guard.guards import Guards
from sidecar.guard.seen import MAX_KEPT_BYTES
from tests.unit.guard.asked import asked, rules

COMPONENTS: Final = 32
_DEVICES: Final = 4
_LIMIT: Final = Limit(1000.0, 1000)
_LIMITS: Final = Limits(_LIMIT, _LIMIT, _LIMIT)
_EVERY: Final = rules(
    "{manyNetworks: {}, impossibleTravel: {}, sharedFingerprint: {}, inconsistentFingerprint: {}, probing: {}, "
    "exemptionBurst: {}, canary: {subjects: [honeypot]}}"
)
_REST: Final = {f"component-{place:02}": "x" * 16 for place in range(COMPONENTS - 1)}


def bound(entries: int) -> int:
    """Bytes that guards of so many entries never exceed: 10 KiB for each subject, known or not, and what is kept as it came."""
    return 2 * entries * (10 << 10) + 2 * MAX_KEPT_BYTES


def flood(guards: Guards, subjects: int, begin: int, end: int) -> None:
    """Requests `begin` to `end`: of each of `subjects` four unknown devices with 32 components, each on ever new networks; then
    of others. No two are the same; half of the subjects are known."""
    for number in range(begin, end):
        place, turn = number % subjects, number // subjects
        device, network = turn % _DEVICES, turn // _DEVICES
        generation = network // 24
        subject = f"{generation}-{place}"
        guards.examine(
            asked(
                _EVERY,
                subject=subject,
                known=bool(place % 2),
                fingerprint={**_REST, "canvas": f"{subject}-{device}"},
                address=bytes([network % 24, *(number & 0xFFFFFF).to_bytes(3, "big")]),
                lat=1.0,
                lon=float(network % 180),
                limits=_LIMITS,
                at=number * 0.001,
            ),
            f"caller-{number}",
        )
        if number % 64 == 0:
            guards.findings()  # as the worker does every few seconds
