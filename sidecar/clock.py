"""The three clocks of the sidecar: wall time, time since boot, and which boot this is."""

from __future__ import annotations

import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """Reads the machine's clocks. Tests pass a `boot_id` of their own, or subclass.

    Raises OSError if no boot id is given and the kernel offers none: without one, nothing on disk could be trusted.
    """

    __slots__ = ("_boot_id",)

    def __init__(self, boot_id: str | None = None) -> None:
        self._boot_id = boot_id if boot_id is not None else _BOOT_ID.read_text(encoding="ascii").strip()

    def wall(self) -> float:
        """Seconds since the Unix epoch. May jump either way."""
        return time.time()

    def boottime(self) -> float:
        """Seconds since this boot, suspended time included (CLOCK_BOOTTIME). Equal in all processes; never jumps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot_id(self) -> str:
        """Random name of this kernel boot. `boottime` values compare only within one."""
        return self._boot_id
