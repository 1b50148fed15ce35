"""The agent: follows the control plane, writes the store, ships the journal, scrubs. One per pod."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from google.protobuf.message import DecodeError

from engine.errors import InvalidInputError, SidestepError
from engine.names import Lane
from engine.policy import PolicyError
from sidecar.clock import Clock
from sidecar.config import Config, resource_attributes
from sidecar.gather.tenant import check_record
from sidecar.journal.claim import locked
from sidecar.journal.export import Exporter, open_exporter
from sidecar.journal.resource import save_resource
from sidecar.journal.segment import JournalError
from sidecar.journal.ship import Shipper
from sidecar.journal.span import encode_resource
from sidecar.journal.spool import BYTES_PER_S, SpoolError, check_spool
from sidecar.lease.reservations import Reservations, ReservationsError
from sidecar.local.store import LocalStore, LocalStoreError
from sidecar.metrics.push import MetricsPush, open_push
from sidecar.outbox.authentications import AuthenticationSender
from sidecar.outbox.closed_holders import HolderCloser
from sidecar.outbox.journal_reports import JournalReporter, ReportSettings
from sidecar.outbox.settlements import SettlementSender
from sidecar.outbox.upward import Upward
from sidecar.outbox.usage import UsageSender
from sidecar.page import AgentSlot, AgentWord, Page, State, boottime_ms
from sidecar.store.errors import RefusedError
from sidecar.store.writer import Writer
from sidecar.sync.client import SyncClient, SyncSettings
from sidecar.sync.state import SyncState
from sidecar.usage.checks import Checks, ChecksError

_BEAT_S = 0.25
_MAINTAIN_S = 1.0
# Between two slices of the scrub, of a few milliseconds each: it must not be noticed.
_SCRUB_PAUSE_S = 0.02
# How long a batch in flight may take when it is time to stop; cut off, it is sent again.
_LAST_BATCH_S = 1.0
# What is kept back of the grace period for the last report and the last push of metrics.
_LAST_WORD_S = 1.0
# And for a spool, besides what its size takes: a share of what is left, since a busy node is slow at everything.
_SPOOL_S = 1.0
_SPOOL_SHARE = 0.25
# How long the last report of the journal may take.
_LAST_REPORT_S = 3.0
# What is kept back of the grace period for closing files.
_CLOSE_S = 1.0

_log = logging.getLogger(__name__)


def run(config: Config, page: Page) -> int:
    """Runs until SIGTERM, then ships what is left of the journal within the grace period. Returns the exit code.

    Any error that would leave the agent half alive ends it with 1: the supervisor starts it again, and a new start
    examines what it finds on disk.
    """
    try:
        return asyncio.run(_Agent(config, page).run())
    except SidestepError as error:  # its message is ours
        _log.error("the agent cannot go on: %s", error)
        return 1
    except Exception:
        _log.exception("the agent cannot go on")
        return 1


def check(collection: int, record_id: str, value: bytes) -> None:
    """Whether this version can serve a record. Raises RefusedError: the last good data is kept then."""
    try:
        check_record(collection, record_id, value)
    except DecodeError as error:
        raise RefusedError("undecodable", str(error)) from None
    except (PolicyError, InvalidInputError) as error:
        raise RefusedError("policy_rejected", f"{record_id}: {error}") from None


class Teller(Protocol):
    """Something that tells the control plane what the pod's workers have done."""

    async def run(self) -> None:
        """Tells what there is, until cancelled."""

    async def step(self) -> float:
        """Tells all there is now. Returns how long to wait before the next try, seconds."""


class _Agent:
    def __init__(self, config: Config, page: Page) -> None:
        self._config = config
        self._page = page
        self._slot: AgentSlot = page.agent
        self._stop = asyncio.Event()
        # Of this agent; the page counts on from its predecessor's.
        self._counted: dict[AgentWord, int] = {}
        self._slot.set(AgentWord.JOURNAL_MAX_BYTES, config.journal_max)
        self._slot.set(AgentWord.SOFT_STALE_MS, int(config.soft_stale_s * 1000))
        self._slot.set(AgentWord.HARD_STALE_MS, int(config.hard_stale_s * 1000))

    async def run(self) -> int:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        async with AsyncExitStack() as parts:
            writer = None
            if self._page.drain_deadline_ms == 0:  # started while draining, it is there for the journal alone
                # May examine the whole store first; it beats meanwhile.
                writer = Writer(
                    self._config.data_dir, map_size=self._config.store_max, check=check, pulse=self._slot.beat
                )
                parts.callback(writer.close)
            shipper = self._shipper(parts)
            self._check_spool()
            metrics = open_push(self._config, self._page)
            if metrics is not None:
                parts.push_async_callback(metrics.close)
            reporter = self._reporter(shipper)
            parts.push_async_callback(reporter.close)
            tellers = [*self._spends(shipper, parts), *self._authentications(parts), self._usage(parts)]
            await self._work(writer, shipper, reporter, metrics, tellers)
            await self._drain(shipper, reporter, metrics, tellers)
        return 0

    def _sync(self, writer: Writer) -> SyncClient:
        config = self._config
        settings = SyncSettings(config.control_plane, config.sidecar_name, version("sidestep"))
        client = SyncClient(writer, settings, on_state=self._publish)
        self._publish(client.state)
        return client

    def _shipper(self, parts: AsyncExitStack) -> Shipper:
        config = self._config
        config.journal_dir.mkdir(parents=True, exist_ok=True)
        if not parts.enter_context(locked(config.journal_dir)):
            raise JournalError(f"{config.journal_dir} is being shipped by another program")
        resource = resource_attributes(config)
        try:
            save_resource(config.journal_dir, resource)
        except OSError as error:  # a full disk, which only shipping makes room on
            _log.error("%s: %s; what is left there may not say whose it is", config.journal_dir, error.strerror)
        exporter = _exporter(config)
        if exporter is not None:
            parts.push_async_callback(exporter.close)
        shipper = Shipper(
            config.journal_dir,
            exporter,
            self._slot,
            resource=encode_resource(resource),
            # Half the bound: what the collector refuses must not stop what it would take.
            quarantine_bytes=config.journal_max // 2,
        )
        parts.callback(shipper.close)
        return shipper

    def _reporter(self, shipper: Shipper) -> JournalReporter:
        config = self._config
        settings = ReportSettings(config.control_plane, config.sidecar_name, config.journal_report_interval_s)
        return JournalReporter(shipper, config.journal_dir, self._page, settings)

    def _spends(self, shipper: Shipper, parts: AsyncExitStack) -> list[Teller]:
        """What tells the control plane of spends that no worker tells it of."""
        config = self._config
        boot = Clock().boot_id()
        upward = Upward(config.control_plane, config.sidecar_name, "leases")
        parts.push_async_callback(upward.close)
        try:
            reservations = Reservations(config.leases_dir, boot)
        except ReservationsError as error:
            _log.error("leases: %s; settlements are not sent", error)
            return [HolderCloser(shipper, config.leases_dir, boot, upward)]
        parts.callback(reservations.close)
        return [
            HolderCloser(shipper, config.leases_dir, boot, upward, reservations),
            SettlementSender(reservations, upward),
        ]

    def _authentications(self, parts: AsyncExitStack) -> list[Teller]:
        """What tells the control plane of reported authentications."""
        config = self._config
        try:
            local = LocalStore(config.local_dir)
        except LocalStoreError as error:
            _log.error("reported authentications: %s; they are not sent", error)
            return []
        parts.callback(local.close)
        upward = Upward(config.control_plane, config.sidecar_name, "reported authentications")
        parts.push_async_callback(upward.close)
        return [AuthenticationSender(local, upward)]

    def _usage(self, parts: AsyncExitStack) -> UsageSender:
        config = self._config
        upward = Upward(config.control_plane, config.sidecar_name, "usage")
        parts.push_async_callback(upward.close)
        checks = None
        try:
            checks = Checks(config.checks_dir, Clock().boot_id())
        except ChecksError as error:
            _log.error("spot checks: %s; their outcomes are not sent", error)
        else:
            parts.callback(checks.close)
        return UsageSender(config.usage_dir, checks, upward)

    def _check_spool(self) -> None:
        """Says at once what would go wrong at the end, when nobody reads it."""
        spool = self._config.journal_spool
        try:
            if spool is not None:
                check_spool(spool)
        except SpoolError as error:
            _log.error("SIDESTEP_JOURNAL_SPOOL cannot be used: %s", error)
            self._slot.set(AgentWord.SPOOL_UNUSABLE, 1)
        else:
            self._slot.set(AgentWord.SPOOL_UNUSABLE, 0)

    async def _work(
        self,
        writer: Writer | None,
        shipper: Shipper,
        reporter: JournalReporter,
        metrics: MetricsPush | None,
        tellers: Sequence[Teller],
    ) -> None:
        """Everything at once, until told to stop. Raises what any part raises."""
        client = None if writer is None else self._sync(writer)
        ship = asyncio.create_task(shipper.run(self._stop), name="ship")
        others = [
            asyncio.create_task(self._stop.wait(), name="stop"),
            asyncio.create_task(self._beat(client), name="beat"),
            asyncio.create_task(reporter.run(), name="report"),
            *(asyncio.create_task(teller.run(), name="tell") for teller in tellers),
        ]
        if writer is not None and client is not None:
            others.append(asyncio.create_task(client.run(), name="sync"))
            others.append(asyncio.create_task(self._maintain(writer), name="maintain"))
            others.append(asyncio.create_task(self._scrub(writer), name="scrub"))
        if metrics is not None:
            others.append(asyncio.create_task(metrics.run(), name="metrics"))
        try:
            done, _ = await asyncio.wait([ship, *others], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await asyncio.wait([ship], timeout=_LAST_BATCH_S)
        finally:
            for task in (ship, *others):
                task.cancel()
            await asyncio.gather(ship, *others, return_exceptions=True)

    async def _drain(
        self,
        shipper: Shipper,
        reporter: JournalReporter,
        metrics: MetricsPush | None,
        tellers: Sequence[Teller],
    ) -> None:
        self._slot.set_state(State.DRAINING)
        config = self._config
        by_supervisor = self._page.drain_deadline_ms > 0
        left_ms = self._page.drain_deadline_ms - boottime_ms() if by_supervisor else 1000 * config.shutdown_grace_s
        beat = asyncio.create_task(self._beat(None))
        deadline = time.monotonic() + left_ms / 1000 - _CLOSE_S
        ship_until = deadline - _LAST_WORD_S
        # Otherwise workers go on appending.
        spool = config.journal_spool if by_supervisor and config.journal_sink != "none" else None
        if spool is not None:
            ship_until -= max(_SPOOL_S, _SPOOL_SHARE * left_ms / 1000) + shipper.backlog_bytes() / BYTES_PER_S
        shipped = await shipper.drain(ship_until)
        # Before a spool takes the records away that tell what was spent.
        await self._tell(tellers)
        if spool is not None:
            shipped = await self._spool(shipper, spool)
        if not shipped:
            _log.error("the grace period ended with records not shipped; they stay in %s", config.journal_dir)
        left_s = deadline - time.monotonic()
        if left_s > 0:
            pushed = [] if metrics is None else [metrics.push(min(left_s, _LAST_WORD_S))]
            await asyncio.gather(reporter.report_last(left_s), *pushed)
        beat.cancel()

    async def _tell(self, tellers: Sequence[Teller]) -> None:
        """Once more, for what the workers left when they ended."""
        for teller in tellers:
            try:
                async with asyncio.timeout(_LAST_WORD_S / 2):
                    await teller.step()
            except (TimeoutError, OSError, ReservationsError, LocalStoreError, ChecksError):
                _log.warning(
                    "not all spends, usage and reported authentications could be told; they are told later, or count as spent"
                )

    async def _spool(self, shipper: Shipper, spool: Path) -> bool:
        """False: the records stay where they are."""
        try:
            await shipper.spool(spool, self._config.sidecar_name)
        except (JournalError, OSError) as error:
            _log.error("the journal could not be spooled: %s", error)
            return False
        return True

    async def _beat(self, client: SyncClient | None) -> None:
        while True:
            self._slot.beat()
            if client is not None:
                self._publish(client.state)
            await asyncio.sleep(_BEAT_S)

    async def _maintain(self, writer: Writer) -> None:
        while True:
            await asyncio.sleep(_MAINTAIN_S)
            freed = writer.maintain()
            if freed:
                _log.info("freed %d slots of dead readers", freed)
            await asyncio.to_thread(writer.remove_retired)

    async def _scrub(self, writer: Writer) -> None:
        while True:
            await asyncio.sleep(self._config.scrub_interval_s)
            for finding in writer.scrub():
                if finding is not None:
                    self._slot.add(AgentWord.SCRUB_FINDINGS)
                    _log.error("scrub: %s", finding)
                    writer.condemn()
                    raise RuntimeError("the store was found damaged and put aside; starting anew")
                await asyncio.sleep(_SCRUB_PAUSE_S)
            self._slot.add(AgentWord.SCRUBS)

    def _publish(self, state: SyncState) -> None:
        slot = self._slot
        slot.set_state(State.SERVING if state.cursors else State.NOT_LOADED)
        slot.set(AgentWord.SYNC_CONNECTED, int(state.connected))
        self._count(AgentWord.SYNC_RECONNECTS, max(0, state.streams - 1))
        self._count(AgentWord.SYNC_DELTAS, state.deltas)
        self._count(AgentWord.SYNC_SNAPSHOTS, state.snapshots)
        self._count(AgentWord.SYNC_MISMATCHES, state.mismatches)
        slot.set(AgentWord.SYNC_BREAKERS, len(state.broken))
        slot.set(AgentWord.SYNC_REFUSALS, len(state.refusals))
        revisions = [
            cursor.revision if (cursor := state.cursors.get((self._config.tenant, lane))) else None for lane in Lane
        ]
        age_s = None if state.last_heartbeat_at is None else max(0.0, time.time() - state.last_heartbeat_at)
        slot.set_data(age_s, *revisions)

    def _count(self, word: AgentWord, count: int) -> None:
        """Raises a counter by what was added to `count`, which began at 0 with this process."""
        self._slot.add(word, count - self._counted.get(word, 0))
        self._counted[word] = count


def _exporter(config: Config) -> Exporter | None:
    if config.journal_sink == "none":
        _log.warning("SIDESTEP_JOURNAL_SINK is none: decisions are not kept")
        return None
    return open_exporter(config.otlp, "traces")
