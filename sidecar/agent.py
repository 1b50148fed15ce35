"""The agent: follows the control plane, writes the store, ships the journal, scrubs. One per pod."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from importlib.metadata import version
from pathlib import Path

from google.protobuf.message import DecodeError

from engine.errors import InvalidInputError
from engine.names import Lane
from engine.policy import PolicyError
from sidecar.config import Config
from sidecar.gather.tenant import check_record
from sidecar.journal.export import OtlpExporter
from sidecar.journal.ship import Shipper
from sidecar.journal.span import encode_resource
from sidecar.page import AgentSlot, AgentWord, Page, State, boottime_ms
from sidecar.store.errors import RefusedError
from sidecar.store.writer import Writer
from sidecar.sync.client import SyncClient, SyncSettings
from sidecar.sync.state import SyncState

_BEAT_S = 0.25
_MAINTAIN_S = 1.0
# Between two slices of the scrub, of a few milliseconds each: it must not be noticed.
_SCRUB_PAUSE_S = 0.02
# How long a batch in flight may take when it is time to stop; cut off, it is sent again.
_LAST_BATCH_S = 1.0
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


class _Agent:
    def __init__(self, config: Config, page: Page) -> None:
        self._config = config
        self._page = page
        self._slot: AgentSlot = page.agent
        self._stop = asyncio.Event()

    async def run(self) -> int:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        # May examine the whole store first; it beats meanwhile.
        writer = Writer(self._config.data_dir, map_size=self._config.store_max, check=check, pulse=self._slot.beat)
        try:
            exporter = _exporter(self._config)
            shipper = Shipper(
                self._config.journal_dir,
                exporter,
                self._slot,
                resource=encode_resource(_resource(self._config)),
                # Half the bound: what the collector refuses must not stop what it would take.
                quarantine_bytes=self._config.journal_max // 2,
            )
            try:
                await self._work(writer, shipper)
                await self._drain(shipper)
            finally:
                shipper.close()
                if exporter is not None:
                    await exporter.close()
        finally:
            writer.close()
        return 0

    async def _work(self, writer: Writer, shipper: Shipper) -> None:
        """Everything at once, until told to stop. Raises what any part raises."""
        settings = SyncSettings(
            address=self._config.control_plane, sidecar=self._config.sidecar_name, version=version("sidestep")
        )
        client = SyncClient(writer, settings, on_state=self._publish)
        self._publish(client.state)
        ship = asyncio.create_task(shipper.run(self._stop), name="ship")
        others = [
            asyncio.create_task(self._stop.wait(), name="stop"),
            asyncio.create_task(client.run(), name="sync"),
            asyncio.create_task(self._beat(client), name="beat"),
            asyncio.create_task(self._maintain(writer), name="maintain"),
            asyncio.create_task(self._scrub(writer), name="scrub"),
        ]
        try:
            done, _ = await asyncio.wait([ship, *others], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await asyncio.wait([ship], timeout=_LAST_BATCH_S)
        finally:
            for task in (ship, *others):
                task.cancel()
            await asyncio.gather(ship, *others, return_exceptions=True)

    async def _drain(self, shipper: Shipper) -> None:
        self._slot.set_state(State.DRAINING)
        left_ms = self._page.drain_deadline_ms - boottime_ms()
        if self._page.drain_deadline_ms == 0:  # stopped by someone other than the supervisor
            left_ms = int(self._config.shutdown_grace_s * 1000)
        beat = asyncio.create_task(self._beat(None))
        if not await shipper.drain(time.monotonic() + left_ms / 1000 - _CLOSE_S):
            _log.warning("the grace period ended with records not shipped; they stay in %s", self._config.journal_dir)
        beat.cancel()

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
        slot.set(AgentWord.SYNC_RECONNECTS, max(0, state.streams - 1))
        slot.set(AgentWord.SYNC_BREAKERS, len(state.broken))
        slot.set(AgentWord.SYNC_REFUSALS, len(state.refusals))
        revisions = [
            cursor.revision if (cursor := state.cursors.get((self._config.tenant, lane))) else None for lane in Lane
        ]
        age_s = None if state.last_heartbeat_at is None else max(0.0, time.time() - state.last_heartbeat_at)
        slot.set_data(age_s, *revisions)


def _exporter(config: Config) -> OtlpExporter | None:
    if config.journal_sink == "none":
        _log.warning("SIDESTEP_JOURNAL_SINK is none: decisions are not kept")
        return None
    otlp = config.otlp
    return OtlpExporter(
        otlp.endpoint,
        insecure=otlp.insecure,
        headers=dict(otlp.headers),
        timeout_s=otlp.timeout_s,
        certificate=_pem(otlp.certificate),
        client_key=_pem(otlp.client_key),
        client_certificate=_pem(otlp.client_certificate),
        gzip=otlp.gzip,
    )


def _pem(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def _resource(config: Config) -> dict[str, str]:
    return {"service.instance.id": config.sidecar_name, "service.version": version("sidestep")} | config.resource
