"""The program `sidestep-controlplane`, and the only wiring of its parts."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import NamedTuple

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sidestep.v1 import (
    access_pb2_grpc,
    admin_pb2_grpc,
    audit_pb2_grpc,
    lease_pb2_grpc,
    report_pb2_grpc,
    usage_pb2_grpc,
)

from controlplane.api.admin import AdminService
from controlplane.api.audit import AuditService
from controlplane.api.errors import ErrorInterceptor
from controlplane.api.grants import AccessService
from controlplane.api.health import Health
from controlplane.api.identity import IdentityInterceptor
from controlplane.api.leases import LeaseService
from controlplane.api.proposals import ProposalService
from controlplane.api.quotas import ImportQuotas
from controlplane.api.refusals import Refusals
from controlplane.api.reports import ReportService
from controlplane.api.sync import SyncService
from controlplane.api.usage import UsageService
from controlplane.api.writing import Writer
from controlplane.changes import Changes
from controlplane.config import FILE_SETTING, Settings, load_settings, otel_environment, setting_name
from controlplane.due import DueGrants
from controlplane.errors import SettingsError
from controlplane.metrics.calls import CallsInterceptor
from controlplane.metrics.catalogue import SERVICES
from controlplane.metrics.collect import Collector, Sources
from controlplane.metrics.lag import LoopLag
from controlplane.metrics.meters import Meters
from controlplane.operators import SETTING as OPERATORS_SETTING
from controlplane.operators import Operators
from controlplane.retention import Retention
from controlplane.review.access import Reviewer
from controlplane.snapshots import Snapshots
from controlplane.store import Store
from controlplane.threat.fleet import FleetLimits
from controlplane.threat.watch import Watch
from engine import logs
from engine.errors import SidestepError
from engine.tokenfiles import TokenFilesError

_LOG = logging.getLogger(__name__)

_SERVICES = tuple(service.full_name for service in SERVICES)
_GRPC_OPTIONS = (
    # Without this a second process would take over part of the connections instead of failing to start.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    # Above its default of 1,000 grpcio ends waiting calls at random with CANCELLED, which a herd of reconnecting sidecars would
    # reach; admission is SyncService's to refuse, with a time to come back.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # A sidecar that vanished without a word is noticed by this.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class Serving(NamedTuple):
    """Where a running control plane can be reached."""

    grpc: str
    http: str


@asynccontextmanager
async def control_plane(settings: Settings) -> AsyncIterator[Serving]:
    """Runs a control plane; on leaving, ends streams, lets running calls finish and closes everything.

    Raises SettingsError if an address cannot be had, SchemaError or StoreError if the database cannot be used.
    """
    async with AsyncExitStack() as stack:
        store = await Store.open(settings.database_url)
        stack.push_async_callback(store.close)
        changes = Changes(store)
        await changes.start()
        stack.push_async_callback(changes.stop)
        snapshots = Snapshots(store, settings.snapshot_path(), max_builds=settings.max_snapshot_builds)
        stack.push_async_callback(snapshots.stop)
        await snapshots.start()
        retention = Retention(
            store,
            changes,
            snapshots,
            log_entries=settings.log_entries,
            log_bytes=settings.log_bytes,
            sidecars_s=settings.sidecar_retention,
            journals_s=settings.journal_retention,
        )
        scope = settings.scope()
        sync = SyncService(
            store,
            changes,
            snapshots,
            scope_of=lambda _context: scope,
            heartbeat_s=settings.heartbeat,
            ack_timeout_s=settings.ack_timeout,
            max_streams=settings.max_streams,
        )
        meters = Meters(version("sidestep"), otel_environment())
        stack.push_async_callback(asyncio.to_thread, meters.close)
        operators = _read_operators(settings)
        refusals = Refusals(store)
        stack.push_async_callback(refusals.close)
        status = Health(
            _SERVICES,
            {"database": changes.is_current},
            operators.describe
            if operators is not None
            else lambda: {
                "operators": "development mode: anyone may administer",
                "approvals": "by asserted names: that the second person is another one is only said",
            },
            lambda accept: _scrape(meters, collector, accept),
        )
        errors = ErrorInterceptor()
        interceptors = (CallsInterceptor(meters.record_call), errors, IdentityInterceptor(operators, refusals))
        server = grpc.aio.server(interceptors=interceptors, options=_GRPC_OPTIONS)
        tenants = settings.scope()
        leases = LeaseService(store, lambda _context: tenants)
        reports = ReportService(store, refusals, tenants)
        quotas = ImportQuotas(per_tenant=settings.imports_per_tenant, records_per_minute=settings.import_records)
        _add_services(server, settings, store, sync, status, leases, reports, quotas)
        lag = LoopLag()
        collector = Collector(
            Sources(
                store,
                changes,
                snapshots,
                sync,
                leases,
                reports,
                quotas,
                lag,
                meters.rpcs,
                lambda: errors.store_failures,
            )
        )
        grpc_address = _listen_grpc(server, settings)
        http_address = await _listen_http(status, settings)
        stack.push_async_callback(status.close)
        await server.start()
        stack.push_async_callback(server.stop, settings.drain)
        limits = FleetLimits(settings.fleet_subjects, settings.fleet_window)
        watch = Watch(store, limits, settings.review_interval)
        works = [
            retention.run(),
            status.run(),
            refusals.run(),
            watch.run(),
            DueGrants(store, settings.due_interval).run(),
            lag.run(),
            collector.run(),
            meters.run(collector.collect),
        ]
        if operators is not None:
            works.append(operators.follow())
        for work in works:
            stack.push_async_callback(_cancel, asyncio.create_task(work))
        try:
            yield Serving(grpc_address, http_address)
        finally:
            await status.drain()
            sync.drain()


def main() -> None:
    """Serves until SIGTERM or SIGINT. Exit code 2: wrong settings; 1: could not start."""
    parser = argparse.ArgumentParser(
        prog="sidestep-controlplane",
        description="Keeps the records and the caches of all sidecars current.",
        epilog=_describe_settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("sidestep"))
    parser.parse_args()
    try:
        settings = load_settings()
        logs.configure(settings.log_level, settings.log_format, "controlplane")
        asyncio.run(_serve(settings))
    except SettingsError as error:
        sys.exit(_complain(error, 2))
    except SidestepError as error:
        sys.exit(_complain(error, 1))


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with control_plane(settings) as serving:
        # Whoever started this program waits for this line.
        sys.stdout.write(f"ready grpc={serving.grpc} http={serving.http}\n")
        sys.stdout.flush()
        await stopping.wait()
        _LOG.info("stopping")
        # A second signal ends the program at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _read_operators(settings: Settings) -> Operators | None:
    if not settings.operators:
        _LOG.warning(
            "%s is not set: development mode, whoever reaches the admin API may do everything", OPERATORS_SETTING
        )
        return None
    try:
        return Operators(settings.operators)
    except TokenFilesError as error:
        raise SettingsError(f"{OPERATORS_SETTING}: {error}") from None


def _add_services(
    server: grpc.aio.Server,
    settings: Settings,
    store: Store,
    sync: SyncService,
    status: Health,
    leases: LeaseService,
    reports: ReportService,
    quotas: ImportQuotas,
) -> None:
    access = AccessService(store, Reviewer(store, store.usage.last_used))
    access_pb2_grpc.add_AccessServiceServicer_to_server(access, server)  # type: ignore[no-untyped-call]
    writer = Writer(store)
    admin = AdminService(store, writer, quotas)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)  # type: ignore[no-untyped-call]
    audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditService(store), server)  # type: ignore[no-untyped-call]
    report_pb2_grpc.add_ReportServiceServicer_to_server(reports, server)  # type: ignore[no-untyped-call]
    proposals = ProposalService(store, writer)
    audit_pb2_grpc.add_ProposalServiceServicer_to_server(proposals, server)  # type: ignore[no-untyped-call]
    usage_pb2_grpc.add_UsageServiceServicer_to_server(UsageService(store), server)  # type: ignore[no-untyped-call]
    lease_pb2_grpc.add_LeaseServiceServicer_to_server(leases, server)  # type: ignore[no-untyped-call]
    sync.add_to(server)
    health_pb2_grpc.add_HealthServicer_to_server(status.servicer, server)
    if settings.reflection:
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)


async def _scrape(meters: Meters, collector: Collector, accept: str) -> tuple[str, bytes]:
    meters.update(await collector.collect())
    # Some hundred series: not in the event loop.
    return await asyncio.to_thread(meters.render, accept)


def _listen_grpc(server: grpc.aio.Server, settings: Settings) -> str:
    host = settings.listen.rpartition(":")[0]
    try:
        return f"{host}:{server.add_insecure_port(settings.listen)}"
    except RuntimeError:
        raise SettingsError(f"{setting_name('listen')}: cannot listen on {settings.listen}") from None


async def _listen_http(status: Health, settings: Settings) -> str:
    host, _, port = settings.http_listen.rpartition(":")
    try:
        return f"{host}:{await status.listen(host.strip('[]'), int(port))}"
    except OSError as error:
        reason = f"cannot listen on {settings.http_listen}: {error.strerror}"
        raise SettingsError(f"{setting_name('http_listen')}: {reason}") from None


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _describe_settings() -> str:
    lines = ["settings (environment, or a YAML file with the same names):"]
    lines += [f"  {FILE_SETTING}", "      path of the YAML file"]
    for name, field in Settings.model_fields.items():
        lines += [f"  {setting_name(name)}", f"      {field.description} (default: {field.default})"]
    return "\n".join(lines)


def _complain(error: SidestepError, code: int) -> int:
    for line in str(error).splitlines():
        sys.stderr.write(f"sidestep-controlplane: {line}\n")
    return code
