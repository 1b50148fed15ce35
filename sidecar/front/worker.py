"""A worker process: one loop per listener over one store, one journal and one slot of the page."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
from collections.abc import Sequence
from typing import Final

from engine.errors import SidestepError
from engine.names import Lane
from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.front.admission import Admission
from sidecar.front.budgets import Budgets
from sidecar.front.disclosure import Disclosure
from sidecar.front.grpcio import GrpcioTransport
from sidecar.front.health import HEALTH_SERVICE, Health
from sidecar.front.loop import WorkerLoop
from sidecar.front.methods import OtherCall, methods
from sidecar.front.native import NativeTransport
from sidecar.front.outcomes import MAX_OUTCOME_BYTES, OutcomeTaker
from sidecar.front.recorder import Recorder
from sidecar.front.repeats import Repeats
from sidecar.front.report import MAX_REPORT_BYTES, AuthenticationReporter
from sidecar.front.servicer import SERVICE, DecisionServicer
from sidecar.front.settle import MAX_SETTLE_BYTES, Settler
from sidecar.front.transport import Transport, TransportError, TransportType
from sidecar.gather.gatherer import GatherConfig
from sidecar.gather.reported import ReportedLately
from sidecar.guard.guards import Guards
from sidecar.guard.places import Places
from sidecar.journal.segment import JournalError, SegmentWriter, worker_name
from sidecar.lease.client import LeaseClient, LeaseSettings
from sidecar.lease.reservations import Reservations, ReservationsError
from sidecar.local.store import LocalStore, LocalStoreError
from sidecar.page import State, WorkerSlot, WorkerWord
from sidecar.store.reader import Reader
from sidecar.upstream import open_upstream
from sidecar.usage.checks import Checks, ChecksError
from sidecar.usage.collector import Collector

_log = logging.getLogger(__name__)

_TRANSPORTS: Final[dict[str, TransportType]] = {"native": NativeTransport, "grpcio": GrpcioTransport}
_STOP: Final = {signal.SIGTERM, signal.SIGINT}
# How often the page is written; while there is no data, how soon it is noticed that it has come.
_TICK_S: Final = 0.2
_EAGER_TICK_S: Final = 0.02
# A loop that has not come round for so long is hung, and the worker stops beating.
_STALL_S: Final = 2.0
# The supervisor gives workers half of the grace; this much of it is for leaving.
_LEAVE_S: Final = 1.0
_FLUSH_S: Final = 0.1
# How long what is left of budgets may take to be given back.
_CLOSE_LEASES_S: Final = 0.5

EXIT_CANNOT_START: Final = 1
EXIT_LOOP_DIED: Final = 70


def run(
    config: Config, index: int, page: WorkerSlot, *, clock: Clock | None = None, guards: Guards | None = None
) -> int:
    """Serves worker `index`'s listeners until SIGTERM or SIGINT, then drains. Returns the exit code.

    To be called in the main thread of a process of its own. `page` is attached; bound ports, state, data, heartbeat and
    counters are published there. Before any data is there, calls end UNAVAILABLE and health says NOT_SERVING.
    """
    # Blocked rather than handled: the main thread takes them when it is ready to, and no other thread is interrupted.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    clock = clock or Clock()
    reservations = _reservations(config, clock)
    checks = _checks(config, clock)
    local = _local_store(config)
    for at, part in enumerate((reservations, local, checks)):  # in the order of LOCAL_STORES
        page.set(WorkerWord.LOCAL_UNUSABLE, int(part is None), at)
        page.add(WorkerWord.LOCAL_FAILURES, int(part is None), at)
    reader = Reader(config.data_dir, map_size=config.store_max, clock=clock)
    reporter = AuthenticationReporter(local, reader, clock, config.tenant)
    others = (
        OtherCall("Settle", MAX_SETTLE_BYTES, Settler(reservations, clock).answer),
        OtherCall("ReportAuthentication", MAX_REPORT_BYTES, reporter.answer),
        OtherCall("ReportOutcome", MAX_OUTCOME_BYTES, OutcomeTaker(checks, clock).answer),
    )
    transports: list[Transport] = []
    try:
        journal = SegmentWriter(
            config.journal_dir,
            worker_name(index),
            config.journal_max // config.workers,
            shared_by=config.workers,
            durable=config.journal_durability == "disk",
        )
        for listener in config.listen:
            transports.append(  # noqa: PERF401 - what is open already must be closed if the next one fails
                _TRANSPORTS[config.transport](
                    listener.for_worker(index),
                    methods(config.max_message_bytes, others),
                    reflection=(SERVICE, HEALTH_SERVICE) if config.reflection else (),
                )
            )
    except (TransportError, JournalError) as error:
        _log.error("cannot start: %s", error)
        for transport in transports:
            transport.close()
        return EXIT_CANNOT_START
    places = Places(config.geo_file) if config.geo_file is not None else None
    if guards is None:
        guards = Guards(entries=config.guard_entries, places=places, slot=page)
    leases = None if reservations is None else _lease_client(config, clock, journal)
    budgets = None if reservations is None or leases is None else Budgets(leases.leases, reservations, clock, page)
    usage = Collector(
        config.usage_dir,
        journal.chain,
        clock,
        findings=guards.findings,
        checks=checks,
        window_s=config.usage_interval_s,
    )
    reported = None if local is None else local.authentications
    worker = _Worker(
        config, page, clock, reader, journal, transports, others, guards, places, budgets, leases, usage, reported
    )
    try:
        return worker.serve()
    finally:
        worker.close()
        if checks is not None:
            checks.close()
        if reservations is not None:
            reservations.close()
        if local is not None:
            local.close()


def _reservations(config: Config, clock: Clock) -> Reservations | None:
    """None: they cannot be used, which has been logged."""
    try:
        return Reservations(config.leases_dir, clock.boot_id())
    except ReservationsError as error:
        _log.error("leases: %s; no grant with a budget applies, and nothing can be settled", error)
        return None


def _checks(config: Config, clock: Clock) -> Checks | None:
    """None: they cannot be used, which has been logged."""
    try:
        return Checks(config.checks_dir, clock.boot_id())
    except ChecksError as error:
        _log.error("spot checks: %s; their outcomes cannot be reported", error)
        return None


def _local_store(config: Config) -> LocalStore | None:
    """None: it cannot be used, which has been logged."""
    try:
        return LocalStore(config.local_dir)
    except LocalStoreError as error:
        _log.error("reported authentications: %s; none is taken, and none counts", error)
        return None


def _lease_client(config: Config, clock: Clock, journal: SegmentWriter) -> LeaseClient:
    settings = LeaseSettings(
        config.leases_dir, journal.chain, clock.boot_id(), open_upstream(config), config.sidecar_name
    )
    return LeaseClient(settings)


class _Worker:
    """The main thread's side: it publishes what the loops do, and ends them."""

    def __init__(
        self,
        config: Config,
        page: WorkerSlot,
        clock: Clock,
        reader: Reader,
        journal: SegmentWriter,
        transports: list[Transport],
        others: Sequence[OtherCall],
        guards: Guards,
        places: Places | None,
        budgets: Budgets | None,
        leases: LeaseClient | None,
        usage: Collector,
        reported: ReportedLately | None,
    ) -> None:
        self._usage = usage
        self._page = page
        self._clock = clock
        self._places = places
        self._leases = leases
        self._tenant = config.tenant
        self._drain_s = max(_LEAVE_S, config.shutdown_grace_s / 2 - _LEAVE_S)
        self._journal = journal
        self._transports = transports
        self._reader = reader
        self._health = Health()
        gather = GatherConfig(
            config.tenant, config.soft_stale_s, config.hard_stale_s, signed_time=config.trusted_keys is not None
        )
        self._recorder = Recorder(journal, page, clock)
        self._admission = Admission(config.callers, page) if config.callers is not None else None
        repeats = Repeats()
        self._loops = [
            WorkerLoop(
                transport,
                DecisionServicer(
                    gather,
                    clock,
                    diagnose=config.diagnose,
                    disclosure=Disclosure(config.telemetry_user, config.telemetry_address, config.telemetry_values),
                    guards=guards,
                    budgets=budgets,
                    usage=usage,
                    repeats=repeats,
                    reported=reported,
                ),
                self._reader,
                self._recorder,
                page,
                self._health,
                clock,
                max_message_bytes=config.max_message_bytes,
                strict=config.journal_strict,
                admission=self._admission,
                others=others,
            )
            for transport in transports
        ]
        self._threads = [
            threading.Thread(target=loop.run, name=f"loop {listener}", daemon=True)
            for loop, listener in zip(self._loops, config.listen, strict=True)
        ]

    def serve(self) -> int:
        """Runs the loops until told to stop. Returns the exit code."""
        # Before the first call: while one thread opens the generation, another's view would find none.
        self._reader.follow()
        for transport in self._transports:
            transport.start()
        # What is loaded by now stays; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        for thread in self._threads:
            thread.start()
        if self._leases is not None:
            self._leases.start()
        self._page.set_ports([transport.port for transport in self._transports])
        self._publish()
        while signal.sigtimedwait(_STOP, _TICK_S if self._health.loaded else _EAGER_TICK_S) is None:
            if not all(thread.is_alive() for thread in self._threads):
                _log.error("a loop died")
                return EXIT_LOOP_DIED
            self._publish()
        self._drain()
        return 0

    def close(self) -> None:
        """Ends everything at once."""
        for transport in self._transports:
            transport.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_LEAVE_S)
        # A loop that hangs may have spent something just now: then the agent accounts for it, by the journal.
        if self._leases is not None and not any(thread.is_alive() for thread in self._threads):
            self._leases.close(_CLOSE_LEASES_S)
        self._usage.close()
        self._recorder.settle()
        self._journal.close()
        self._reader.close()
        self._page.set_state(State.DEAD)

    def _publish(self) -> None:
        urgent = bulk = age_s = None
        try:
            with self._reader.view() as view:
                urgent, bulk = view.cursor(self._tenant, Lane.URGENT), view.cursor(self._tenant, Lane.BULK)
                age_s = view.age_s(self._tenant, self._clock)
        except SidestepError:
            pass  # no data, or none that can be read: that is what is published
        self._page.set_data(age_s, urgent and urgent.revision, bulk and bulk.revision)
        self._health.loaded = urgent is not None and bulk is not None
        self._page.set_state(State.SERVING if self._health.loaded else State.NOT_LOADED)
        self._recorder.settle()
        self._usage.follow()
        if self._admission is not None:
            self._admission.follow()
        if self._places is not None:
            self._places.follow()
        self._beat()

    def _beat(self) -> None:
        """On behalf of all loops: a worker with a hung one has to be killed."""
        oldest = min(loop.ticked_at for loop in self._loops)
        if time.monotonic() - oldest < _STALL_S:
            self._page.beat()

    def _drain(self) -> None:
        self._page.set_state(State.DRAINING)
        self._health.draining = True
        for transport in self._transports:
            transport.drain(self._drain_s)
        until = time.monotonic() + self._drain_s + _LEAVE_S
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < until:
                thread.join(_EAGER_TICK_S)
                self._page.beat()
        # A transport takes an answer before it is on the wire; closed at once, it would drop the last ones.
        time.sleep(_FLUSH_S)
