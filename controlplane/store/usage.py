"""The tables of what sidecars report of their decisions: uses, spot checks, and who was seen with which fingerprint.

A window counts once, by (sidecar, chain, number); a spot check once, by its sample; sketches merge. So a repeated report changes
nothing, and of several replicas each may take any report.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sidestep.v1 import report_pb2
from sqlalchemy import Column, Index, Integer, LargeBinary, Table, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.store.columns import Int64, Name, Real
from controlplane.store.database import Database, Kind, Lock
from controlplane.store.dialect import Upsert
from controlplane.store.tables import METADATA
from engine.classes import class_name
from engine.estimate import Samples
from engine.sketch import DistinctCount

USAGE_CHAINS = Table(
    "usage_chains",
    METADATA,
    Column("sidecar", Name, primary_key=True),
    Column("chain", Name, primary_key=True),
    # Of the last window taken.
    Column("number", Int64, nullable=False),
    Column("taken_at", Real, nullable=False),
    sqlite_with_rowid=False,
)

# Per hour: `decision` by outcome and basis, `guard` by guard and code, `class` exemptions by class, `dropped`.
USAGE_COUNTS = Table(
    "usage_counts",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("hour", Int64, primary_key=True, autoincrement=False),
    Column("kind", Name, primary_key=True),
    Column("name", Name, primary_key=True),
    Column("count", Int64, nullable=False),
    sqlite_with_rowid=False,
)

GRANT_USES = Table(
    "grant_uses",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("grant_id", Name, primary_key=True),
    Column("uses", Int64, nullable=False),
    Column("last_at", Real, nullable=False),
    sqlite_with_rowid=False,
)

# `outcome`: of sidestep.v1.SpotCheckOutcome; 0: none was reported.
SPOT_CHECKS = Table(
    "spot_checks",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("sample", LargeBinary, primary_key=True),
    Column("grant_id", Name, nullable=False),
    Column("grant_class", Name, nullable=False),
    Column("rate", Real, nullable=False),
    Column("drawn_at", Real, nullable=False),
    Column("outcome", Integer, nullable=False),
    sqlite_with_rowid=False,
)
Index("spot_checks_drawn", SPOT_CHECKS.c.tenant, SPOT_CHECKS.c.drawn_at)

# Who was seen with a fingerprint, per witness (column `sidecar`: its name, or the identity in its certificate) and hour,
# as a sketch. `key`: which key all of it is hashed with.
FINGERPRINT_SUBJECTS = Table(
    "fingerprint_subjects",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("key", LargeBinary, primary_key=True),
    Column("fingerprint", LargeBinary, primary_key=True),
    Column("sidecar", Name, primary_key=True),
    Column("hour", Int64, primary_key=True, autoincrement=False),
    Column("subjects", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

FINGERPRINT_DEVICES = Table(
    "fingerprint_devices",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("key", LargeBinary, primary_key=True),
    Column("fingerprint", LargeBinary, primary_key=True),
    Column("subject", Name, primary_key=True),
    Column("device", Name, primary_key=True),
    Column("seen_at", Real, nullable=False),
    sqlite_with_rowid=False,
)

HOUR_S = 3600
PASSED, FAILED, ABANDONED = (
    report_pb2.SPOT_CHECK_OUTCOME_PASSED,
    report_pb2.SPOT_CHECK_OUTCOME_FAILED,
    report_pb2.SPOT_CHECK_OUTCOME_ABANDONED,
)
# So many devices of one fingerprint are kept.
MAX_DEVICES = 256
_PUT_CHAIN = Upsert(USAGE_CHAINS, ["number", "taken_at"])
_PUT_COUNT = Upsert(USAGE_COUNTS, ["count"])
_PUT_USE = Upsert(GRANT_USES, ["uses", "last_at"])
_PUT_CHECK = Upsert(SPOT_CHECKS, ["outcome"])
_PUT_SUBJECTS = Upsert(FINGERPRINT_SUBJECTS, ["subjects"])
_PUT_DEVICE = Upsert(FINGERPRINT_DEVICES, ["seen_at"])

Key = tuple[bytes, bytes]


class ClassChecks(NamedTuple):
    """The spot checks of one class since some time."""

    draws: int
    passed: int
    failed: int
    abandoned: int
    # For the estimate: by rate, only those with an outcome.
    samples: tuple[Samples, ...]


class Shared(NamedTuple):
    """One fingerprint: how many subjects each witness saw with it, and the (subject, device) pairs it was taken for."""

    subjects: Mapping[str, DistinctCount]
    devices: Sequence[tuple[str, str]]


class UsageTable:
    """Reports of usage. All methods raise StoreError when the database fails. Times are Unix seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(
        self,
        sidecar: str,
        windows: Iterable[report_pb2.UsageWindow],
        outcomes: Iterable[report_pb2.SpotCheck],
        witness: str = "",
    ) -> None:
        """Takes over a report. Durable when it returns. `witness`: as whom the sidecar counts where several must agree; empty: as
        itself."""
        now = time.time()
        windows, outcomes = list(windows), list(outcomes)
        tenants = {usage.tenant for window in windows for usage in window.tenants} | {each.tenant for each in outcomes}

        async def write(conn: AsyncConnection) -> None:
            for window in windows:
                if await _is_new(conn, sidecar, window, now):
                    for usage in window.tenants:
                        await _take_tenant(conn, witness or sidecar, usage, window.end_time.ToNanoseconds() / 1e9)
            for check in outcomes:
                await _take_check(conn, check.tenant, check)

        # What is added to was read before, and may not have been there at all.
        locks = [Lock(Kind.USAGE_SIDECAR, sidecar), *(Lock(Kind.USAGE_TENANT, tenant) for tenant in tenants)]
        await self._database.write(Kind.USAGE_SIDECAR, write, locks)

    async def last_used(self, tenant: str) -> dict[str, float]:
        """When each grant was last used for an exemption, as far as sidecars reported."""
        query = select(GRANT_USES.c.grant_id, GRANT_USES.c.last_at).where(GRANT_USES.c.tenant == tenant)
        async with self._database.reading() as conn:
            rows = (await conn.execute(query)).all()
            return {str(row[0]): float(row[1]) for row in rows}

    async def counts(self, tenant: str, since: float) -> dict[tuple[str, str], int]:
        """What was counted since (whole hours), by kind and name."""
        table = USAGE_COUNTS.c
        query = (
            select(table.kind, table.name, func.sum(table.count))
            .where(table.tenant == tenant, table.hour >= int(since // HOUR_S))
            .group_by(table.kind, table.name)
        )
        async with self._database.reading() as conn:
            return {(kind, name): int(count) for kind, name, count in await conn.execute(query)}

    async def classes(self, tenant: str) -> list[str]:
        """Classes that spot checks were drawn of."""
        query = select(SPOT_CHECKS.c.grant_class).where(SPOT_CHECKS.c.tenant == tenant).distinct()
        async with self._database.reading() as conn:
            return sorted((await conn.execute(query)).scalars())

    async def checks(self, tenant: str, grant_class: str, since: float) -> ClassChecks:
        """What the class's spot checks since then came to."""
        table = SPOT_CHECKS.c
        query = (
            select(table.rate, table.outcome, func.count())
            .where(table.tenant == tenant, table.drawn_at >= since, table.grant_class == grant_class)
            .group_by(table.rate, table.outcome)
        )
        by_outcome: dict[int, int] = defaultdict(int)
        by_rate: dict[float, list[int]] = defaultdict(lambda: [0, 0])
        async with self._database.reading() as conn:
            for rate, outcome, count in await conn.execute(query):
                by_outcome[outcome] += count
                if outcome:
                    by_rate[rate][outcome != PASSED] += count
        samples = tuple(Samples(rate, passed, failed) for rate, (passed, failed) in sorted(by_rate.items()))
        passed, failed, abandoned = (by_outcome[outcome] for outcome in (PASSED, FAILED, ABANDONED))
        return ClassChecks(sum(by_outcome.values()), passed, failed, abandoned, samples)

    async def shared(self, tenant: str, since: float) -> dict[Key, Shared]:
        """Fingerprints that more than one witness saw since (whole hours), by key and fingerprint."""
        table = FINGERPRINT_SUBJECTS.c
        lately = (table.tenant == tenant, table.hour >= int(since // HOUR_S))
        several = (
            select(table.key, table.fingerprint)
            .where(*lately)
            .group_by(table.key, table.fingerprint)
            .having(func.count(table.sidecar.distinct()) > 1)
            .subquery()
        )
        sketches = (
            select(table.key, table.fingerprint, table.sidecar, table.subjects)
            .where(*lately)
            .join_from(
                FINGERPRINT_SUBJECTS,
                several,
                (table.key == several.c.key) & (table.fingerprint == several.c.fingerprint),
            )
        )
        found: dict[Key, dict[str, DistinctCount]] = defaultdict(dict)
        async with self._database.reading() as conn:
            for key, fingerprint, sidecar, subjects in await conn.execute(sketches):
                held = found[key, fingerprint].setdefault(sidecar, DistinctCount())
                held.merge(DistinctCount.from_bytes(subjects))
            return {of: Shared(seen, await _devices(conn, tenant, of, since)) for of, seen in found.items()}

    async def forget(self, before: float, fingerprints_before: float) -> None:
        """Removes what was reported before, but for when grants were last used. Fingerprints, of which anybody may show any
        number, are kept for less."""
        kept = ((USAGE_COUNTS, before), (FINGERPRINT_SUBJECTS, fingerprints_before))
        statements = (
            delete(USAGE_CHAINS).where(USAGE_CHAINS.c.taken_at < before),
            delete(SPOT_CHECKS).where(SPOT_CHECKS.c.drawn_at < before),
            delete(FINGERPRINT_DEVICES).where(FINGERPRINT_DEVICES.c.seen_at < fingerprints_before),
            *(delete(table).where(table.c.hour < int(since // HOUR_S)) for table, since in kept),
        )

        async def write(conn: AsyncConnection) -> None:
            for statement in statements:
                await conn.execute(statement)

        await self._database.write(Kind.USAGE_SIDECAR, write)


async def _is_new(conn: AsyncConnection, sidecar: str, window: report_pb2.UsageWindow, now: float) -> bool:
    """Whether the window was not taken before; marks it as taken."""
    query = select(USAGE_CHAINS.c.number).where(USAGE_CHAINS.c.sidecar == sidecar, USAGE_CHAINS.c.chain == window.chain)
    known = await conn.scalar(query)
    if known is not None and window.number <= known:
        return False
    row = {"sidecar": sidecar, "chain": window.chain, "number": window.number, "taken_at": now}
    await conn.execute(_PUT_CHAIN.on(conn), row)
    return True


async def _take_tenant(conn: AsyncConnection, witness: str, usage: report_pb2.TenantUsage, at: float) -> None:
    hour = int(at // HOUR_S)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for name, count in usage.decisions.items():
        counts["decision", name] += count
    for guard in usage.guards:
        counts["guard", f"{guard.guard} {guard.code}"] += guard.findings
    for use in usage.grants:
        counts["class", class_name(use.grant_class)] += use.uses
        await _take_use(conn, usage.tenant, use)
    if usage.dropped:
        counts["dropped", ""] += usage.dropped
    for (kind, name), count in sorted(counts.items()):
        await _add_count(conn, usage.tenant, hour, kind, name, count)
    for check in usage.draws:
        await _take_check(conn, usage.tenant, check)
    for seen in usage.fingerprints:
        await _take_fingerprint(conn, witness, usage, seen, hour, at)


async def _add_count(conn: AsyncConnection, tenant: str, hour: int, kind: str, name: str, count: int) -> None:
    row: dict[str, Any] = {"tenant": tenant, "hour": hour, "kind": kind, "name": name}
    table = USAGE_COUNTS.c
    same = (table.tenant == tenant, table.hour == hour, table.kind == kind, table.name == name)
    known = await conn.scalar(select(table.count).where(*same))
    await conn.execute(_PUT_COUNT.on(conn), row | {"count": (known or 0) + count})


async def _take_use(conn: AsyncConnection, tenant: str, use: report_pb2.GrantUse) -> None:
    table = GRANT_USES.c
    same = (table.tenant == tenant, table.grant_id == use.grant)
    known = (await conn.execute(select(table.uses, table.last_at).where(*same))).one_or_none()
    uses, last_at = (0, 0.0) if known is None else (known.uses, known.last_at)
    row = {
        "tenant": tenant,
        "grant_id": use.grant,
        "uses": uses + use.uses,
        "last_at": max(last_at, use.last_time.ToNanoseconds() / 1e9),
    }
    await conn.execute(_PUT_USE.on(conn), row)


async def _take_check(conn: AsyncConnection, tenant: str, check: report_pb2.SpotCheck) -> None:
    """The first outcome counts: the same sample may be challenged several times a day."""
    table = SPOT_CHECKS.c
    known = await conn.scalar(select(table.outcome).where(table.tenant == tenant, table.sample == check.sample))
    if known is not None and (known or not check.outcome):
        return
    row = {
        "tenant": tenant,
        "sample": check.sample,
        "grant_id": check.grant,
        "grant_class": class_name(check.grant_class),
        "rate": check.rate,
        "drawn_at": check.draw_time.ToNanoseconds() / 1e9,
        "outcome": int(check.outcome),
    }
    await conn.execute(_PUT_CHECK.on(conn), row)


async def _take_fingerprint(
    conn: AsyncConnection,
    witness: str,
    usage: report_pb2.TenantUsage,
    seen: report_pb2.FingerprintUse,
    hour: int,
    at: float,
) -> None:
    key = {"tenant": usage.tenant, "key": usage.sketch_key, "fingerprint": seen.fingerprint}
    row = key | {"sidecar": witness, "hour": hour}
    table = FINGERPRINT_SUBJECTS.c
    same = [getattr(table, name) == value for name, value in row.items()]
    known = await conn.scalar(select(table.subjects).where(*same))
    subjects = DistinctCount.from_bytes(seen.subjects)
    if known is not None:
        subjects.merge(DistinctCount.from_bytes(known))
    await conn.execute(_PUT_SUBJECTS.on(conn), row | {"subjects": subjects.to_bytes()})
    held = set(await _devices(conn, usage.tenant, (usage.sketch_key, seen.fingerprint), 0.0))
    for pair in seen.devices:
        # One that is known is seen anew, however many there are.
        if (pair.subject, pair.device) not in held:
            if len(held) >= MAX_DEVICES:
                continue
            held.add((pair.subject, pair.device))
        await conn.execute(_PUT_DEVICE.on(conn), key | {"subject": pair.subject, "device": pair.device, "seen_at": at})


async def _devices(conn: AsyncConnection, tenant: str, of: Key, since: float) -> list[tuple[str, str]]:
    table = FINGERPRINT_DEVICES.c
    query = select(table.subject, table.device).where(
        table.tenant == tenant, table.key == of[0], table.fingerprint == of[1], table.seen_at >= since
    )
    return [(subject, device) for subject, device in await conn.execute(query.order_by(table.subject, table.device))]
