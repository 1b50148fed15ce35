"""A worker loop over a real store, journal and page, with a transport in memory: a test decides what arrives when."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidestep.v1 import decision_pb2

from sidecar.clock import Clock
from sidecar.front.admission import Admission
from sidecar.front.budgets import Budgets
from sidecar.front.disclosure import Disclosure
from sidecar.front.health import Health
from sidecar.front.loop import WorkerLoop
from sidecar.front.methods import OtherCall
from sidecar.front.recorder import Recorder
from sidecar.front.servicer import DecisionServicer
from sidecar.front.transport import StatusCode
from sidecar.gather.gatherer import GatherConfig
from sidecar.journal.record import AnyRecord, Record
from sidecar.journal.segment import SegmentWriter, worker_name
from sidecar.lease.client import LeaseClient, LeaseSettings
from sidecar.lease.reservations import Reservations
from sidecar.page import Page, WorkerSlot, WorkerWord
from sidecar.store.reader import Reader
from sidecar.upstream import Upstream
from tests.fakes.desk import EVALUATE, Desk
from tests.fakes.journal import read_all, read_journal
from tests.fakes.stock import TENANT, Stock
from tests.processes import until

MESSAGE_BYTES = 64 << 10
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Rig:
    """A loop in a thread, and everything around it."""

    def __init__(
        self,
        directory: Path,
        *,
        strict: bool = False,
        journal_max: int = 8 << 20,
        loaded: bool = True,
        disclosure: Disclosure | None = None,
        callers: Path | None = None,
        control_plane: str = "",
        reservations: Reservations | None = None,
        others: Sequence[OtherCall] = (),
    ) -> None:
        self.data = directory / "data"
        self._journal_max = journal_max
        self.stock = Stock(self.data)
        if loaded:
            self.stock.load()
        self.desk = Desk()
        self.health = Health()
        self.page = Page.create(directory / "page", 1)
        self.reader = Reader(self.data)
        self.journal_dir = directory / "journal"
        self.journal = SegmentWriter(self.journal_dir, worker_name(0), journal_max)
        clock = Clock()
        self.admission = None if callers is None else Admission(callers, self.slot)
        self.recorder = Recorder(self.journal, self.slot, clock)
        self.leases: LeaseClient | None = None
        self.reservations: Reservations | None = None
        budgets = None
        if control_plane:
            leases_dir, boot = directory / "leases", clock.boot_id()
            self.leases = LeaseClient(
                LeaseSettings(
                    leases_dir, self.journal.chain, boot, Upstream(control_plane), "pod-1", report_s=0.05, idle_s=60.0
                )
            )
            self.leases.start()
            self.reservations = reservations or Reservations(leases_dir, boot)
            budgets = Budgets(self.leases.leases, self.reservations, clock, self.slot)
        self.servicer = DecisionServicer(
            GatherConfig(TENANT, 300.0, 3600.0), clock, diagnose=True, disclosure=disclosure, budgets=budgets
        )
        self.loop = WorkerLoop(
            self.desk,
            self.servicer,
            self.reader,
            self.recorder,
            self.slot,
            self.health,
            clock,
            max_message_bytes=MESSAGE_BYTES,
            strict=strict,
            admission=self.admission,
            others=others,
        )
        self._thread = threading.Thread(target=self.loop.run, daemon=True)

    @property
    def slot(self) -> WorkerSlot:
        return self.page.worker(0)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.desk.drain(0.0)
        if self._thread.ident is not None:
            self._thread.join(10)
            assert not self._thread.is_alive()
        if self.leases is not None and self.reservations is not None:
            self.leases.close(5.0)
            self.reservations.close()
        self.reader.close()
        self.journal.close()
        self.page.close()
        self.stock.close()

    @property
    def _filler(self) -> Path:
        return self.journal_dir / f"{worker_name(0)}-000000000001-00000001.seg"

    def fill_journal(self) -> None:
        """Brings it to its bound: a segment of an earlier start is as large as all of them may be."""
        with self._filler.open("wb") as file:
            file.truncate(self._journal_max + 1)
        self.journal._used = self.journal._scan()

    def empty_journal(self) -> None:
        """What filled it has been shipped. The writer notices within a tenth of a second."""
        self._filler.unlink()

    def ended(self, *handles: object) -> None:
        until(lambda: set(handles) <= set(self.desk.order), f"{handles} to end", 10)

    def response(self, handle: object) -> decision_pb2.EvaluateResponse:
        self.ended(handle)
        return decision_pb2.EvaluateResponse.FromString(self.desk.answers[handle])

    def batch(self, handle: object) -> list[decision_pb2.EvaluateBatchResult]:
        self.ended(handle)
        return list(decision_pb2.EvaluateBatchResponse.FromString(self.desk.answers[handle]).results)

    def failure(self, handle: object) -> tuple[StatusCode, str]:
        self.ended(handle)
        return self.desk.failures[handle]

    def ask(self, question: decision_pb2.EvaluateRequest, **options: Any) -> decision_pb2.EvaluateResponse:
        handle = object()
        self.desk.put(EVALUATE, question, handle, **options)
        return self.response(handle)

    def records(self) -> list[Record]:
        return read_journal(self.journal_dir)

    def journalled(self) -> list[AnyRecord]:
        """Records of all kinds."""
        return read_all(self.journal_dir)

    def decisions(self) -> int:
        return sum(self.slot.get(WorkerWord.DECISIONS, index) for index in range(28))
