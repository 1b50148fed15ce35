"""What following the control plane looks like from outside: for health, metrics and operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from engine.names import Lane
from sidecar.store.keys import Cursor

LaneId = tuple[str, Lane]


class Phase(StrEnum):
    """What a lane is doing."""

    FOLLOWING = "following"
    """Applying deltas, or waiting for the first message about it."""
    AWAITING = "awaiting"
    """A snapshot was asked for or announced; deltas that do not fit are passed over."""
    LOADING = "loading"
    """A snapshot is coming in."""
    REFUSED = "refused"
    """A change was refused; the last good data serves until a newer revision exists."""
    BROKEN = "broken"
    """A resync did not help: the last good data serves, and this is an alarm."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A change that was not applied. `code` is one of `sidestep.v1.Refusal`."""

    revision: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class SyncState:
    """A moment of the sync client. Times are seconds since the Unix epoch; None: not yet."""

    connected: bool
    streams: int
    """Streams begun since the start."""
    scope: frozenset[str] | None
    cursors: Mapping[LaneId, Cursor]
    phases: Mapping[LaneId, Phase]
    refusals: Mapping[LaneId, Refused]
    deltas: int
    """Deltas applied since the start."""
    snapshots: int
    """Snapshots adopted since the start."""
    mismatches: int
    """Digest mismatches since the start."""
    last_message_at: float | None
    last_heartbeat_at: float | None
    last_error: str
    clock_offset_s: float | None = None
    """By how much the wall clock is ahead of the control plane's signed time; None: not known."""
    trusted_keys: int = 0
    """Keys that are pinned; 0: whatever comes is believed."""
    trusted_keys_problem: str = ""
    """Why the file of trusted keys cannot be used as it is now; empty: it can."""
    unverified: Mapping[str, int] = field(default_factory=dict)
    """Streams given up since the start because something on them was not believed, by `trust.Fault`."""

    @property
    def broken(self) -> frozenset[LaneId]:
        """The lanes whose breaker is open."""
        return frozenset(lane_id for lane_id, phase in self.phases.items() if phase is Phase.BROKEN)
