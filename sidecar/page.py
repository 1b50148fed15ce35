"""The shared page: heartbeats and counters of the pod's processes, in one small mmap'ed file.

The supervisor creates the file `page` in the data directory at every start; agent and workers attach to it. It is an
array of 64-bit words in native byte order, one slot per process after a header:

    header              magic, workers, supervisor pid, drain deadline, time of creation
    slot 0              agent     words of `Word` and `AgentWord`
    slot 1 + i          worker i  words of `Word` and `WorkerWord`

Every slot is written by its owner only (the header, the restarts, and the state of the dead, by the supervisor), so no
lock is needed: an aligned 64-bit word is stored whole. Counters only rise while the file lives, also across restarts of
their owner. Standard library only.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
from bisect import bisect_left
from contextlib import suppress
from enum import IntEnum, unique
from pathlib import Path

from engine.errors import SidestepError

_MAGIC = int.from_bytes(b"SIDESTP1", "big")
_SLOT_WORDS = 256
_WORD_BYTES = 8

UNKNOWN = 2**64 - 1
"""Value of an age or revision that is not known."""

MAX_PORTS = 8
MAX_WORKERS = 64

OUTCOMES = ("unspecified", "allow", "step_up", "deny")
"""Label values; the index is the number of `sidestep.v1.Outcome`."""

BASES = (
    "unspecified",
    "not_required",
    "assurance_satisfied",
    "exemption_grant",
    "challenge",
    "blocked",
    "fail_safe",
)
"""Label values; the index is the number of `sidestep.v1.Basis`."""

ERRORS = (
    "invalid_argument",
    "resource_exhausted",
    "unavailable",
    "deadline_exceeded",
    "internal",
    "unauthenticated",
    "permission_denied",
    "other",
)
"""Closed set of calls that ended without a decision, by gRPC status."""

GUARDS = (
    "shared-fingerprint",
    "many-networks",
    "impossible-travel",
    "probing",
    "canary",
    "exemption-burst",
    "inconsistent-fingerprint",
)
"""Label values; the index is the guard's word. Those of `engine.policy.guards`, which a test holds against these."""

UNVERIFIED = ("unsigned", "unknown_key", "bad_signature", "replayed", "rolled_back", "altered")
"""Label values: why something from the control plane was not believed. Those of `sidecar.sync.trust.Fault`."""

LOCAL_STORES = ("reservations", "authentications", "checks")
"""Label values: what a worker keeps in the pod's own store."""

LIMITED = ("subject", "device", "caller")
LIMIT_EFFECTS = ("no_exemption", "refused")
"""Label values."""

LATENCY_BOUNDS_S = (
    10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0,
)  # fmt: skip
"""Upper bounds of the decision duration's buckets, seconds; one more bucket holds the rest."""


EXPORT_STATES = ("idle", "accepting", "retrying", "refusing")
"""What the collector does with the journal's spans: nothing was sent yet, it takes them, it cannot for now, it will not have
them (credentials, address, or records it refuses and the quarantine has no room for)."""

EXEMPLAR_WORDS = 5

OFFSET_ZERO = 2**62
"""What is added to a signed number in a word."""


class PageError(SidestepError):
    """The page file is missing, of another version or of another size."""


class State(IntEnum):
    """What a process is doing."""

    EMPTY = 0
    STARTING = 1
    # Answering, but only fail-safe: no data was ever loaded.
    NOT_LOADED = 2
    SERVING = 3
    DRAINING = 4
    DEAD = 5

    @property
    def answers(self) -> bool:
        """Whether a worker in this state answers calls."""
        return self in (State.NOT_LOADED, State.SERVING)


@unique
class Word(IntEnum):
    """Words every slot has."""

    PID = 0
    STATE = 1
    HEARTBEAT_MS = 2
    STARTED_MS = 3
    # Of the data in use, for the sidecar's own tenant.
    DATA_AGE_MS = 4
    URGENT_REVISION = 5
    BULK_REVISION = 6
    # Times the process was started again. Written by the supervisor.
    RESTARTS = 7


@unique
class WorkerWord(IntEnum):
    """Words of a worker's slot."""

    # Bound TCP port per listener, in the order of SIDESTEP_LISTEN; 0: a Unix socket, or not bound yet.
    PORTS = 16
    DECISIONS = 24
    ERRORS = 56
    LATENCY = 64
    LATENCY_SUM_NS = 88
    # Decisions answered without a journal record.
    UNRECORDED = 89
    PARKED = 90
    # Records of every kind, decisions and others.
    JOURNAL_RECORDS = 91
    JOURNAL_BYTES = 92
    # 1 while the journal is at its bound and exemptions are off.
    JOURNAL_FULL = 93
    # Callers whose tokens it knows; 0 also in development mode, where nobody needs one.
    CALLERS = 94
    # 1 while SIDESTEP_CALLERS or a token file cannot be used as it is now: what was read before holds.
    CALLERS_UNUSABLE = 95
    # Times that began, or went on for another reason.
    CALLERS_FAILURES = 96
    # 1 while the worker cannot use that part of the pod's own store, in the order of `LOCAL_STORES`; and times it could not.
    LOCAL_UNUSABLE = 120
    LOCAL_FAILURES = 124
    # New findings, by guard in the order of `GUARDS`.
    GUARD_FINDINGS = 200
    # Requests over a rate limit: by what it counts and what became of them, in the order of `LIMITED` and `LIMIT_EFFECTS`.
    LIMITED = 210


@unique
class AgentWord(IntEnum):
    """Words of the agent's slot."""

    SYNC_CONNECTED = 16
    SYNC_RECONNECTS = 17
    # Lanes whose breaker is open, and lanes where a change was refused.
    SYNC_BREAKERS = 18
    SYNC_REFUSALS = 19
    # Written and not yet acknowledged by the collector, quarantined records included.
    JOURNAL_BACKLOG_BYTES = 20
    JOURNAL_SEGMENTS = 21
    JOURNAL_SHIPPED = 22
    # Refused for good by the collector and set aside in a file.
    JOURNAL_QUARANTINED = 24
    # Known to be gone, by sequence number.
    JOURNAL_LOST = 25
    # Segments whose tail was cut because its checksum does not match.
    JOURNAL_TORN = 26
    EXPORT_FAILURES = 27
    SCRUBS = 28
    SCRUB_FINDINGS = 29
    # Records in segments that are discarded because SIDESTEP_JOURNAL_SINK is none.
    JOURNAL_DISCARDED = 30
    # Records written and not yet dealt with.
    JOURNAL_BACKLOG = 31
    # Records copied to the spool while draining.
    JOURNAL_SPOOLED = 32
    # What the collector last said: a number of `EXPORT_STATES`.
    EXPORT_STATE = 33
    # Reports of the journal's chains that the control plane took, and that failed.
    ANCHOR_REPORTS = 34
    ANCHOR_FAILURES = 35
    METRIC_EXPORTS = 36
    METRIC_EXPORT_FAILURES = 37
    SYNC_DELTAS = 38
    SYNC_SNAPSHOTS = 39
    # Per bucket of LATENCY_BOUNDS_S and one more, EXEMPLAR_WORDS words: the last decision of that duration the collector
    # accepted, as trace id (two words, high first), span id, duration in ns and time in Unix ns. All zero: none yet.
    EXEMPLARS = 40
    # Times the digest of a lane differed from what the control plane said it should be.
    SYNC_MISMATCHES = 125
    # Bounds as set up, so that alarms need not repeat them.
    JOURNAL_MAX_BYTES = 126
    SOFT_STALE_MS = 127
    HARD_STALE_MS = 128
    # 1: SIDESTEP_JOURNAL_SPOOL is set and could not be written when the agent started.
    SPOOL_UNUSABLE = 129
    # By how much the wall clock is ahead of the control plane's signed time, ms + 2^62; 0: not known.
    CLOCK_OFFSET_MS = 150
    # Public keys pinned; 0: development mode, whatever comes is believed.
    TRUSTED_KEYS = 140
    # 1 while SIDESTEP_TRUSTED_KEYS cannot be used as it is now: what was read before holds.
    TRUSTED_KEYS_UNUSABLE = 141
    # Streams given up because something on them was not believed, by why in the order of `UNVERIFIED`.
    SYNC_UNVERIFIED = 142


# On the decision path, where looking into an enumeration costs.
_DECISIONS, _LATENCY, _LATENCY_SUM_NS = (
    int(word) for word in (WorkerWord.DECISIONS, WorkerWord.LATENCY, WorkerWord.LATENCY_SUM_NS)
)


class _Header(IntEnum):
    MAGIC = 0
    WORKERS = 1
    SUPERVISOR_PID = 2  # for people
    DRAIN_DEADLINE_MS = 3
    CREATED_NS = 4


def boottime_ms() -> int:
    """Milliseconds since boot, time asleep included (CLOCK_BOOTTIME)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Slot:
    """One process's words. Written by its owner, read by anyone."""

    __slots__ = ("_base", "_lock", "_words")

    def __init__(self, words: memoryview[int], base: int) -> None:
        self._words = words
        self._base = base
        # Between threads of the owner only; they must share this object.
        self._lock = threading.Lock()

    def get(self, word: int, index: int = 0) -> int:
        """A word, or the index-th of an array of words."""
        return self._words[self._base + word + index]

    def set(self, word: int, value: int, index: int = 0) -> None:
        """Stores a word; values outside 0..2^64-1 raise ValueError."""
        self._words[self._base + word + index] = value

    def add(self, word: int, amount: int = 1, index: int = 0) -> None:
        """Raises a counter."""
        with self._lock:
            self._words[self._base + word + index] += amount

    def attach(self) -> None:
        """Takes the slot over for this process: state STARTING, counters go on from where they are."""
        self.set(Word.PID, os.getpid())
        self.set(Word.STARTED_MS, boottime_ms())
        self.set_data(None, None, None)
        self.set_state(State.STARTING)
        self.beat()

    def beat(self) -> None:
        """Says that the owner is alive; at least once a second, or the supervisor kills it after some seconds."""
        self.set(Word.HEARTBEAT_MS, boottime_ms())

    def set_state(self, state: State) -> None:
        """Publishes what the owner is doing."""
        self.set(Word.STATE, state)

    @property
    def state(self) -> State:
        """What the owner last said it is doing."""
        return State(self.get(Word.STATE))

    @property
    def pid(self) -> int:
        """The owner's process id; 0 before the first start."""
        return self.get(Word.PID)

    def set_data(self, age_s: float | None, urgent_revision: int | None, bulk_revision: int | None) -> None:
        """Publishes the data in use; None: not known."""
        self.set(Word.DATA_AGE_MS, UNKNOWN if age_s is None else max(0, int(age_s * 1000)))
        self.set(Word.URGENT_REVISION, UNKNOWN if urgent_revision is None else urgent_revision)
        self.set(Word.BULK_REVISION, UNKNOWN if bulk_revision is None else bulk_revision)


class WorkerSlot(Slot):
    """A worker's slot. Counting is thread-safe."""

    __slots__ = ()

    def count_decision(self, outcome: int, basis: int, duration_s: float) -> None:
        """Counts one decision; `outcome` and `basis` are the API's numbers (unknown ones count as unspecified)."""
        words, base = self._words, self._base
        if not 0 <= outcome < len(OUTCOMES):
            outcome = 0
        if not 0 <= basis < len(BASES):
            basis = 0
        decisions = base + _DECISIONS + outcome * len(BASES) + basis
        bucket = base + _LATENCY + bisect_left(LATENCY_BOUNDS_S, duration_s)
        duration_ns = max(0, int(duration_s * 1e9))
        with self._lock:
            words[decisions] += 1
            words[bucket] += 1
            words[base + _LATENCY_SUM_NS] += duration_ns

    def count_error(self, error: str) -> None:
        """Counts a call that ended without a decision; names outside ERRORS count as `other`."""
        self.add(WorkerWord.ERRORS, 1, ERRORS.index(error) if error in ERRORS else len(ERRORS) - 1)

    def set_ports(self, ports: list[int]) -> None:
        """Publishes the bound TCP ports in the order of SIDESTEP_LISTEN; 0 for a Unix socket."""
        for index, port in enumerate(ports[:MAX_PORTS]):
            self.set(WorkerWord.PORTS, port, index)

    def ports(self, count: int) -> list[int]:
        """The bound ports of the first `count` listeners; 0: a Unix socket, or not bound yet."""
        return [self.get(WorkerWord.PORTS, index) for index in range(min(count, MAX_PORTS))]


class AgentSlot(Slot):
    """The agent's slot."""

    __slots__ = ()

    @classmethod
    def detached(cls) -> AgentSlot:
        """A slot of no page: for what counts in one, outside a sidecar."""
        return cls(memoryview(bytearray(_SLOT_WORDS * _WORD_BYTES)).cast("Q"), 0)


class Page:
    """The attached page. Close it before the process exits; slots must not be used afterwards."""

    def __init__(self, path: Path) -> None:
        """Attaches to an existing page. Raises PageError."""
        self._path = path
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PageError(f"{path}: {error.strerror}") from None
        try:
            size = os.fstat(fd).st_size
            if size < _SLOT_WORDS * _WORD_BYTES:
                raise PageError(f"{path}: too short for a page ({size} bytes)")
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._words: memoryview[int] = memoryview(self._map).cast("Q")
        self.workers = self._words[_Header.WORKERS]
        if self._words[_Header.MAGIC] != _MAGIC or size != _size(self.workers):
            self.close()
            raise PageError(f"{path}: not a page of this version")

    @classmethod
    def create(cls, path: Path, workers: int) -> Page:
        """Creates the file anew, every word zero, and attaches; processes attached to an older file keep that one.

        The one before is kept beside it, see `earlier`.
        """
        if not 1 <= workers <= MAX_WORKERS:
            raise PageError(f"a page holds 1 to {MAX_WORKERS} workers, not {workers}")
        fresh = path.with_name(path.name + ".new")
        # Written out rather than truncated to size: a full disk must fail here, not as SIGBUS at the first store.
        fresh.write_bytes(bytes(_size(workers)))
        with fresh.open("r+b") as file:
            for word in (_MAGIC, workers, os.getpid(), 0, time.time_ns()):  # in the order of _Header
                file.write(word.to_bytes(_WORD_BYTES, sys.byteorder))
        with suppress(FileNotFoundError):
            path.replace(_earlier(path))
        fresh.replace(path)
        return cls(path)

    def earlier(self) -> Page | None:
        """The page before this one, as its processes left it; None if there was none, or of another version."""
        try:
            return Page(_earlier(self._path))
        except PageError:
            return None

    @property
    def agent(self) -> AgentSlot:
        """The agent's slot."""
        return AgentSlot(self._words, _SLOT_WORDS)

    def worker(self, index: int) -> WorkerSlot:
        """Worker `index`'s slot. Raises PageError for an index the page has no slot for."""
        if not 0 <= index < self.workers:
            raise PageError(f"no slot for worker {index}: the page holds {self.workers}")
        return WorkerSlot(self._words, _SLOT_WORDS * (2 + index))

    def set_drain_deadline(self, deadline_ms: int) -> None:
        """By when (CLOCK_BOOTTIME) everyone must be gone. Written by the supervisor when it begins to drain."""
        self._words[_Header.DRAIN_DEADLINE_MS] = deadline_ms

    @property
    def drain_deadline_ms(self) -> int:
        """0: not draining."""
        return self._words[_Header.DRAIN_DEADLINE_MS]

    @property
    def created_ns(self) -> int:
        """Since when the counters count, Unix nanoseconds."""
        return self._words[_Header.CREATED_NS]

    def close(self) -> None:
        """Detaches."""
        self._words.release()
        self._map.close()


def _earlier(path: Path) -> Path:
    return path.with_name(path.name + ".last")


def _size(workers: int) -> int:
    return (2 + workers) * _SLOT_WORDS * _WORD_BYTES
