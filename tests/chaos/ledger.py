"""Whether a store is at a whole revision of the control plane, by what the control plane itself wrote down."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import lmdb
from sidestep.v1 import sync_pb2

from engine.digest import EMPTY, Digest
from engine.names import Collection, Lane, lane_of
from sidecar.store.environment import open_for_reading
from sidecar.store.errors import NotLoadedError
from sidecar.store.generation import DataDir
from sidecar.store.reader import Reader
from sidecar.store.scrub import scrub
from tests.processes import until

LaneId = tuple[str, int]
Place = tuple[int, int, bytes]
"""(epoch, revision, digest)"""


class Ledger:
    """The digest of every revision, from the change rows in the control plane's database. Thread-safe.

    Remembers rows that have been compacted since, and fails if a revision ever has a second digest.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._digests: dict[tuple[LaneId, int, int], bytes] = {}
        self._known: dict[LaneId, int] = {}
        self.keys: dict[LaneId, bytes] = {}

    def absorb(self) -> None:
        """Reads what was committed since."""
        with self._lock, closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as database:
            for tenant, lane, key in database.execute("SELECT tenant, lane, digest_key FROM heads").fetchall():
                self.keys[tenant, lane] = key
            for lane_id in self.keys:
                rows = database.execute(
                    "SELECT revision, delta FROM changes WHERE tenant = ? AND lane = ? AND revision > ?"
                    " ORDER BY revision",
                    (*lane_id, self._known.get(lane_id, 0)),
                ).fetchall()
                for revision, encoded in rows:
                    delta = sync_pb2.Delta.FromString(encoded)
                    assert delta.revision == revision
                    self._note(lane_id, delta.epoch, revision, delta.digest)
                    self._known[lane_id] = revision

    def reread(self) -> None:
        """Reads all rows again: every revision still has the digest it had."""
        with self._lock:
            self._known.clear()
        self.absorb()

    def compact(self, database_is_closed: bool) -> None:
        """Drops the whole log, as retention does with most of it. Only while no control plane runs."""
        assert database_is_closed
        self.absorb()
        with closing(sqlite3.connect(self._database)) as database, database:
            database.execute("DELETE FROM changes")

    def heads(self) -> dict[LaneId, tuple[int, bytes]]:
        """Revision and digest of every lane's head, as committed."""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT tenant, lane, revision, digest FROM heads").fetchall()
        return {(tenant, lane): (revision, digest) for tenant, lane, revision, digest in rows}

    def deltas(self, lane_id: LaneId, first: int, last: int) -> list[sync_pb2.Delta]:
        """The commits of these revisions, as far as there are any and the log still holds them."""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT delta FROM changes WHERE tenant = ? AND lane = ? AND revision BETWEEN ? AND ?",
                (*lane_id, first, last),
            ).fetchall()
        return [sync_pb2.Delta.FromString(encoded) for (encoded,) in rows]

    def digest(self, lane_id: LaneId, epoch: int, revision: int) -> bytes | None:
        """The digest of a revision; None: the control plane never committed it."""
        if revision == 0:
            return EMPTY
        found = self._digests.get((lane_id, epoch, revision))
        if found is None:
            self.absorb()
            found = self._digests.get((lane_id, epoch, revision))
        return found

    def _note(self, lane_id: LaneId, epoch: int, revision: int, digest: bytes) -> None:
        held = self._digests.setdefault((lane_id, epoch, revision), digest)
        assert held == digest, f"{lane_id}: revision {revision} was used twice"


class Inspector:
    """Looks at a sidecar's store from another process, as a worker does, and recomputes everything in it."""

    def __init__(self, data_dir: Path, ledger: Ledger) -> None:
        self._directory = DataDir(data_dir)
        self._ledger = ledger
        self._reader = Reader(data_dir)
        self.inspections = 0
        self.glances = 0
        self.revisions: set[tuple[LaneId, int]] = set()
        self.generations: set[str] = set()

    def places(self) -> dict[LaneId, Place]:
        """Where each lane stands; empty if nothing is loaded."""
        try:
            with self._reader.view() as view:
                return {
                    (tenant, int(lane)): (cursor.epoch, cursor.revision, cursor.digest)
                    for tenant in view.scope() or ()
                    for lane in Lane
                    if (cursor := view.cursor(tenant, lane)) is not None
                }
        except NotLoadedError:
            return {}

    def revision(self, tenant: str, lane: Lane) -> int | None:
        """Where one lane stands; None: not loaded."""
        try:
            with self._reader.view() as view:
                cursor = view.cursor(tenant, lane)
                return None if cursor is None else cursor.revision
        except NotLoadedError:
            return None

    def glance(self, tenant: str) -> None:
        """Fails if a lane holds less than its revision's commit, or already something of the next one.

        Cheap, so that it can be done often enough to meet the moment between two transactions that should be one.
        """
        try:
            with self._reader.view() as view:
                for lane in Lane:
                    cursor = view.cursor(tenant, lane)
                    if cursor is None:
                        continue
                    for delta in self._ledger.deltas((tenant, int(lane)), cursor.revision, cursor.revision + 1):
                        for change in delta.changes:
                            new = change.value if change.HasField("value") else None
                            applied = view.get(change.collection, tenant, change.id) == new
                            assert applied is (delta.revision == cursor.revision), (
                                f"{lane.name} is at {cursor.revision}, but {change.id} is not as it was then"
                            )
        except NotLoadedError:
            return
        self.glances += 1

    def inspect(self) -> dict[LaneId, Place]:
        """Fails unless every lane holds exactly the records of the revision it claims, and every index row is right."""
        found: dict[LaneId, Place] = {}
        try:
            with self._reader.view() as view:
                for tenant in sorted(view.scope() or ()):
                    for lane in Lane:
                        cursor = view.cursor(tenant, lane)
                        if cursor is None:
                            continue
                        lane_id = tenant, int(lane)
                        place = cursor.epoch, cursor.revision, cursor.digest
                        wanted = self._ledger.digest(lane_id, cursor.epoch, cursor.revision)
                        assert wanted is not None, f"{lane_id} is at {place[:2]}, which was never committed"
                        assert cursor.digest == wanted, f"{lane_id}: the cursor's digest is not that of {place[:2]}"
                        digest = Digest(self._ledger.keys[lane_id])
                        for collection in Collection:
                            if lane_of(collection) is lane:
                                for record_id, value in view.scan(collection, tenant):
                                    digest.add(collection, record_id, value)
                        assert digest.value() == wanted, f"{lane_id}: the records are not those of {place[:2]}"
                        found[lane_id] = place
        except NotLoadedError:
            return {}
        assert self._scrubbed() == []
        self.inspections += 1
        self.revisions |= {(lane_id, place[1]) for lane_id, place in found.items()}
        return found

    def wait_for_convergence(self, within_s: float) -> None:
        """Waits until every lane stands where the control plane's does, and inspects that."""

        def converged() -> bool:
            heads = self._ledger.heads()
            places = self.places()
            return bool(heads) and {lane_id: place[1:] for lane_id, place in places.items()} == heads

        until(converged, f"{self.places()} to become {self._ledger.heads()}", within_s)
        heads = self._ledger.heads()
        assert {lane_id: place[1:] for lane_id, place in self.inspect().items()} == heads

    def close(self) -> None:
        """Lets go of the store."""
        self._reader.close()

    def _scrubbed(self) -> list[str]:
        while True:
            generation = self._directory.current()
            if generation is None:
                return []
            try:
                environment = open_for_reading(generation)
            except (lmdb.Error, NotLoadedError):
                if generation == self._directory.current():
                    raise
                continue  # swapped away meanwhile
            self.generations.add(generation.name)
            try:
                return [str(finding) for finding in scrub(environment) if finding is not None]
            finally:
                environment.close()


@contextmanager
def inspecting(data_dir: Path, ledger: Ledger, tenant: str) -> Iterator[Inspector]:
    """An inspector that also looks by itself, over and over, until the block ends; what it finds fails the block.

    It glances at `tenant` some hundred times a second, and inspects everything twice a second.
    """
    inspector = Inspector(data_dir, ledger)
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            inspect_at = 0.0
            while not stop.wait(0.004):
                inspector.glance(tenant)
                if time.monotonic() >= inspect_at:
                    inspector.inspect()
                    inspect_at = time.monotonic() + 0.5
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="inspector")
    thread.start()
    try:
        yield inspector
    finally:
        stop.set()
        thread.join()
        inspector.close()
        if failures:
            raise failures[0]
