"""What needs sidecars that agree needs identities that agree: one compromised pod cannot be two sidecars."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from sidestep.v1 import report_pb2

from controlplane.identity.sidecars import WITNESS
from controlplane.store import Store
from controlplane.threat.fleet import FleetLimits, find_shared
from engine.sketch import DistinctCount, item_hash


def window(number: int, first: int) -> report_pb2.UsageWindow:
    made = report_pb2.UsageWindow(chain="w0-0000000000aa", number=number)
    made.end_time.GetCurrentTime()
    usage = made.tenants.add(tenant="acme", sketch_key=bytes(8))
    seen = DistinctCount()
    for subject in range(first, first + 10):
        seen.add(item_hash(bytes(8), f"subject-{subject}"))
    usage.fingerprints.add(fingerprint=bytes(16), subjects=seen.to_bytes())
    return made


@pytest.mark.parametrize(
    ("witnesses", "found"),
    [
        # Two names of one certificate are one witness; so is one that was seen before certificates were demanded.
        ((f"{WITNESS}spiffe://example.org/ns/a/sa/x", f"{WITNESS}spiffe://example.org/ns/a/sa/x"), False),
        (("pod-1", f"{WITNESS}spiffe://example.org/ns/a/sa/x"), False),
        (("pod-1", "pod-2"), False),
        ((f"{WITNESS}spiffe://example.org/ns/a/pod/1", f"{WITNESS}spiffe://example.org/ns/a/pod/2"), True),
    ],
)
def test_two_witnesses_are_two_identities(tmp_path: Path, witnesses: tuple[str, str], found: bool) -> None:
    assert asyncio.run(judged(tmp_path, witnesses)) is found


async def judged(folder: Path, witnesses: tuple[str, str]) -> bool:
    store = await Store.open(f"sqlite+aiosqlite:///{folder}/cp.db")
    try:
        for number, witness in enumerate(witnesses):
            await store.usage.take(f"pod-{number + 1}", [window(1, 100 * number)], [], witness)
        limits = FleetLimits(subjects=15, authenticated=True)
        return bool(await find_shared(store, "acme", limits, time.time()))
    finally:
        await store.close()
