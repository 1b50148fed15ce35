"""The books of `engine.books` in the database: what a call needs is loaded, applied and saved in one transaction.

Calls that come while one
is being written are written together, in the next transaction; each is applied to what the one before it left.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from sidestep.v1 import resources_pb2
from sqlalchemy import column, delete, exists, select, values
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.store.budget_tables import (
    BUDGET_HOLDERS,
    BUDGET_PERIODS,
    BUDGET_ROWS,
    BUDGET_SETTLEMENTS,
    BUDGET_TOTALS,
    read_row,
    read_totals,
    write_row,
    write_totals,
)
from controlplane.store.columns import Int64, Name
from controlplane.store.database import Database, Kind, Lock
from controlplane.store.dialect import Upsert
from controlplane.store.epochs import Era, read_era
from controlplane.store.tables import RECORDS
from engine.books import Ledger, Period, Settled, Settling, Terms, Totals
from engine.errors import SidestepError
from engine.escrow import Account, Answer, Message, Standing
from engine.money import to_nanos
from engine.names import Collection as Collections

# Calls of one transaction.
_GROUP = 64
_PUT_PERIOD = Upsert(BUDGET_PERIODS, ["number", "started_at"])
_PUT_TOTALS = Upsert(BUDGET_TOTALS, ["state", "updated_at"])
_PUT_ROW = Upsert(BUDGET_ROWS, ["state"])
_PUT_HOLDER = Upsert(BUDGET_HOLDERS, ["sidecar", "closed", "seen_at"])
_PUT_SETTLEMENT = Upsert(BUDGET_SETTLEMENTS, ["executed", "settled_at", "grant_id", "subject", "period"])

_EPOCH = Lock(Kind.EPOCH, shared=True)

Totalled = tuple[Account, int, Totals]


class _Call(NamedTuple):
    """One call: what it needs of the books, and what it does with them."""

    tenant: str
    load: Callable[[AsyncConnection], Any]
    apply: Callable[[Ledger], Any]
    # Of the caller, to be remembered: (holder, sidecar); none of a settlement.
    holder: tuple[str, str] | None
    answer: asyncio.Future[Any]


class BudgetTable:
    """The books by account and period. All methods raise StoreError when the database fails; then nothing was kept."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Call] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def begin_period(self, tenant: str, subject: str, authenticated_at: float) -> Period:
        """Begins the subject's next period with a verified strong authentication (Unix seconds), unless the current one began
        with this or a later one, or the epoch was raised after it. Returns the current period. Repeating it changes nothing.
        """

        async def write(conn: AsyncConnection) -> Period:
            era = await read_era(conn)
            period = (await _periods(conn, tenant, [subject])).get((tenant, subject)) or Period()
            # What is older than the era may have begun a period already that the books forgot.
            since = [at for at in (era.raised_at or None, period.started_at) if at is not None]
            if since and authenticated_at <= max(since):
                return period
            period = Period(max(period.number + 1, era.first_period), authenticated_at)
            row = {"tenant": tenant, "subject": subject, "number": period.number, "started_at": authenticated_at}
            await conn.execute(_PUT_PERIOD.on(conn), row)
            return period

        return await self._database.write(Kind.BUDGETS, write, (_EPOCH, Lock(Kind.BUDGETS, tenant)))

    async def lease(self, tenant: str, sidecar: str, message: Message) -> Answer:
        """Takes a holder's totals over and grants its asks; durable when it returns. Raises HolderClosedError."""
        accounts = {standing.account for standing in message.standings} | {ask.account for ask in message.asks}
        named = {(standing.account, standing.period) for standing in message.standings}
        answer: Answer = await self._call(
            tenant,
            lambda conn: _load(conn, tenant, accounts, named, message.holder),
            lambda ledger: ledger.lease(message),
            (message.holder, sidecar),
        )
        return answer

    async def close_holder(
        self, tenant: str, sidecar: str, holder: str, totals: Sequence[Standing]
    ) -> list[tuple[Account, int]]:
        """Ends a holder by the totals its journal proves; returns what contradicts earlier word."""
        named = {(standing.account, standing.period) for standing in totals}
        conflicts: list[tuple[Account, int]] = await self._call(
            tenant,
            lambda conn: _load_holder(conn, tenant, holder, named),
            lambda ledger: ledger.close(tenant, holder, totals),
            (holder, sidecar),
        )
        return conflicts

    async def sidecar_of(self, tenant: str, holder: str) -> str | None:
        """The sidecar that last spoke for a holder; None: no such holder."""
        table = BUDGET_HOLDERS.c
        query = select(table.sidecar).where(table.tenant == tenant, table.holder == holder)
        async with self._database.reading() as conn:
            found: str | None = (await conn.execute(query)).scalar()
            return found

    async def settle(self, tenant: str, settlements: Sequence[Settling]) -> list[Settled]:
        """Completes spends; durable when it returns."""
        results: list[Settled] = await self._call(
            tenant,
            lambda conn: _load_settlements(conn, tenant, settlements),
            lambda ledger: ledger.settle(settlements),
            None,
        )
        return results

    async def totals(
        self, tenant: str, grant: str, *, subject: str = "", after: tuple[str, int] = ("", 0), limit: int = 100
    ) -> list[Totalled]:
        """Accounts of a grant by (subject, period), all periods; of one subject, or those behind `after`."""
        key = BUDGET_TOTALS.c
        query = select(BUDGET_TOTALS).where(key.tenant == tenant, key.grant_id == grant)
        if subject:
            query = query.where(key.subject == subject)
        query = query.where((key.subject > after[0]) | ((key.subject == after[0]) & (key.period > after[1])))
        async with self._database.reading() as conn:
            rows = (await conn.execute(query.order_by(key.subject, key.period).limit(limit))).all()
        return [(Account(tenant, grant, row.subject), row.period, read_totals(row.state)) for row in rows]

    async def periods(self, tenant: str, subjects: Collection[str]) -> dict[str, Period]:
        """Current periods; the first, without a beginning, of subjects no strong authentication is known of."""
        async with self._database.reading() as conn:
            found = await _periods(conn, tenant, subjects)
        return {subject: found.get((tenant, subject)) or Period() for subject in subjects}

    async def forget(self, before: float) -> int:
        """Removes what nobody needs any more, if it has not changed since: periods that are over, with rows and settlements,
        and holders. Returns how many totals. Nothing is ever granted of an earlier period, so nothing is gained by it; of a
        period that is not over every settlement is kept, or a second cancellation would give back twice.
        """
        old = BUDGET_TOTALS.join(
            BUDGET_PERIODS,
            (BUDGET_PERIODS.c.tenant == BUDGET_TOTALS.c.tenant) & (BUDGET_PERIODS.c.subject == BUDGET_TOTALS.c.subject),
        )
        over = select(BUDGET_TOTALS.c.tenant, BUDGET_TOTALS.c.grant_id, BUDGET_TOTALS.c.subject, BUDGET_TOTALS.c.period)
        over = over.select_from(old).where(
            BUDGET_TOTALS.c.period < BUDGET_PERIODS.c.number, BUDGET_TOTALS.c.updated_at < before
        )
        settled = BUDGET_SETTLEMENTS.c
        # Settlements of before they were kept with their account have no period, and stay.
        settled_over = exists().where(
            BUDGET_PERIODS.c.tenant == settled.tenant,
            BUDGET_PERIODS.c.subject == settled.subject,
            BUDGET_PERIODS.c.number > settled.period,
        )

        async def write(conn: AsyncConnection) -> int:
            keys = (await conn.execute(over.limit(_GROUP * 16))).all()
            for tenant, grant, subject, period in keys:
                for table in (BUDGET_ROWS, BUDGET_TOTALS):
                    await conn.execute(
                        delete(table).where(
                            table.c.tenant == tenant,
                            table.c.grant_id == grant,
                            table.c.subject == subject,
                            table.c.period == period,
                        )
                    )
            await conn.execute(delete(BUDGET_SETTLEMENTS).where(settled.settled_at < before, settled_over))
            # Their rows know by themselves that they are closed.
            await conn.execute(delete(BUDGET_HOLDERS).where(BUDGET_HOLDERS.c.seen_at < before))
            return len(keys)

        async with self._database.reading() as conn:
            tenants = {row.tenant for row in await conn.execute(select(BUDGET_PERIODS.c.tenant).distinct())}
        # A row must not vanish between being read and being written by a call.
        locks = [Lock(Kind.BUDGETS, tenant) for tenant in tenants]
        return await self._database.write(Kind.BUDGETS, write, locks)

    async def close(self) -> None:
        """Lets calls under way be written."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def _call(
        self,
        tenant: str,
        load: Callable[[AsyncConnection], Any],
        apply: Callable[[Ledger], Any],
        holder: tuple[str, str] | None,
    ) -> Any:
        call = _Call(tenant, load, apply, holder, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await call.answer

    async def _write(self) -> None:
        try:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(_GROUP, len(self._waiting)))]
                # Who has gone is served all the same: it may have been granted something, and will ask again.
                results: list[tuple[_Call, Any]] = []
                try:
                    results = await self._serve(group)
                except BaseException as error:
                    failure = error if isinstance(error, Exception) else SidestepError("the call was interrupted")
                    results = [(call, failure) for call in group]
                    if not isinstance(error, Exception):
                        raise
                finally:
                    for call, result in results:
                        _tell(call.answer, result)
        finally:
            self._writer = None

    async def _serve(self, group: Sequence[_Call]) -> list[tuple[_Call, Any]]:
        async def write(conn: AsyncConnection) -> list[tuple[_Call, Any]]:
            era = await read_era(conn)
            return [(call, await _serve(conn, call, era)) for call in group]

        locks = [_EPOCH, *(Lock(Kind.BUDGETS, call.tenant) for call in group)]
        return await self._database.write(Kind.BUDGETS, write, locks)


def _tell(answer: asyncio.Future[Any], result: Any) -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)


async def _serve(conn: AsyncConnection, call: _Call, era: Era) -> Any:
    """Applies one call and saves what it changed. A refusal of the books is its result: it changed nothing."""
    ledger: Ledger = await call.load(conn)
    ledger.first_period = era.first_period
    try:
        result = call.apply(ledger)
    except SidestepError as error:
        return error
    now = time.time()
    await _save(conn, ledger, now)
    if call.holder is not None:
        holder, sidecar = call.holder
        closed = (call.tenant, holder) in ledger.closed
        row = {"tenant": call.tenant, "holder": holder, "sidecar": sidecar, "closed": closed, "seen_at": now}
        await conn.execute(_PUT_HOLDER.on(conn), row)
    return result


async def _save(conn: AsyncConnection, ledger: Ledger, now: float) -> None:
    rows = [
        {**_account(account, period), "holder": holder, "state": write_row(ledger.rows[holder, account, period])}
        for holder, account, period in sorted(ledger.changed_rows)
    ]
    totals = [
        {**_account(account, period), "state": write_totals(ledger.totals[account, period]), "updated_at": now}
        for account, period in sorted({key[1:] for key in ledger.changed_rows})
    ]
    settled = [
        {
            "tenant": each.account.tenant,
            "decision_id": each.decision_id,
            "executed": each.executed,
            "settled_at": now,
            "grant_id": each.account.grant,
            "subject": each.account.subject,
            "period": each.period,
        }
        for each in ledger.settled_now
    ]
    for statement, parameters in ((_PUT_ROW, rows), (_PUT_TOTALS, totals), (_PUT_SETTLEMENT, settled)):
        if parameters:
            await conn.execute(statement.on(conn), parameters)


async def _load(
    conn: AsyncConnection,
    tenant: str,
    accounts: Collection[Account],
    named: Collection[tuple[Account, int]],
    holder: str,
) -> Ledger:
    """What a lease needs: the accounts' current periods, those that are named, and the holder's rows of them."""
    ledger = Ledger(periods=await _periods(conn, tenant, {account.subject for account in accounts}))
    ledger.terms = await _terms(conn, tenant, {account.grant for account in accounts})
    keys = {*named, *((account, ledger.period(account).number) for account in accounts)}
    await _load_totals(conn, tenant, keys, ledger)
    # Of all periods: an ask that was overtaken by one for an earlier period is refused too.
    wanted = _wanted({(account, 0) for account in accounts})
    row = BUDGET_ROWS.c
    same = (row.grant_id == wanted.c.grant_id) & (row.subject == wanted.c.subject)
    query = select(BUDGET_ROWS).where(row.tenant == tenant, row.holder == holder)
    for found in await conn.execute(query.join(wanted, same)):
        ledger.rows[holder, Account(tenant, found.grant_id, found.subject), found.period] = read_row(found.state)
    await _load_closed(conn, tenant, holder, ledger)
    return ledger


async def _load_holder(
    conn: AsyncConnection, tenant: str, holder: str, named: Collection[tuple[Account, int]]
) -> Ledger:
    """What closing a holder needs: all its rows, and what is named."""
    ledger = Ledger()
    query = select(BUDGET_ROWS).where(BUDGET_ROWS.c.tenant == tenant, BUDGET_ROWS.c.holder == holder)
    for found in await conn.execute(query):
        ledger.rows[holder, Account(tenant, found.grant_id, found.subject), found.period] = read_row(found.state)
    await _load_totals(conn, tenant, {*named, *(key[1:] for key in ledger.rows)}, ledger)
    await _load_closed(conn, tenant, holder, ledger)
    return ledger


async def _load_settlements(conn: AsyncConnection, tenant: str, settlements: Sequence[Settling]) -> Ledger:
    ledger = Ledger()
    ids = [settling.decision_id for settling in settlements]
    query = select(BUDGET_SETTLEMENTS).where(BUDGET_SETTLEMENTS.c.tenant == tenant)
    for found in await conn.execute(query.where(BUDGET_SETTLEMENTS.c.decision_id.in_(ids))):
        ledger.settlements[tenant, found.decision_id] = found.executed
    await _load_totals(conn, tenant, {(settling.account, settling.period) for settling in settlements}, ledger)
    for holder in {settling.holder for settling in settlements}:
        wanted = _wanted({(each.account, each.period) for each in settlements if each.holder == holder})
        row = BUDGET_ROWS.c
        query = select(BUDGET_ROWS).where(row.tenant == tenant, row.holder == holder)
        for found in await conn.execute(query.join(wanted, _same(row, wanted.c))):
            ledger.rows[holder, Account(tenant, found.grant_id, found.subject), found.period] = read_row(found.state)
        await _load_closed(conn, tenant, holder, ledger)
    return ledger


async def _load_totals(
    conn: AsyncConnection, tenant: str, keys: Collection[tuple[Account, int]], ledger: Ledger
) -> None:
    if not keys:
        return
    wanted = _wanted(keys)
    query = select(BUDGET_TOTALS).where(BUDGET_TOTALS.c.tenant == tenant)
    for found in await conn.execute(query.join(wanted, _same(BUDGET_TOTALS.c, wanted.c))):
        ledger.totals[Account(tenant, found.grant_id, found.subject), found.period] = read_totals(found.state)


async def _load_closed(conn: AsyncConnection, tenant: str, holder: str, ledger: Ledger) -> None:
    query = select(BUDGET_HOLDERS.c.closed).where(BUDGET_HOLDERS.c.tenant == tenant, BUDGET_HOLDERS.c.holder == holder)
    if await conn.scalar(query):
        ledger.closed.add((tenant, holder))


async def _periods(conn: AsyncConnection, tenant: str, subjects: Collection[str]) -> dict[tuple[str, str], Period]:
    query = select(BUDGET_PERIODS).where(BUDGET_PERIODS.c.tenant == tenant)
    rows = await conn.execute(query.where(BUDGET_PERIODS.c.subject.in_(sorted(subjects))))
    return {(tenant, row.subject): Period(row.number, row.started_at) for row in rows}


async def _terms(conn: AsyncConnection, tenant: str, grants: Collection[str]) -> dict[tuple[str, str], Terms | None]:
    query = select(RECORDS.c.id, RECORDS.c.value).where(
        RECORDS.c.tenant == tenant, RECORDS.c.collection == int(Collections.GRANTS), RECORDS.c.id.in_(sorted(grants))
    )
    now = time.time()
    return {(tenant, record_id): terms_of(value, now) for record_id, value in await conn.execute(query)}


def terms_of(value: bytes, now: float) -> Terms | None:
    """The terms of a stored grant's budget; None if it has none, or is not in force."""
    grant = resources_pb2.Grant()
    try:
        grant.ParseFromString(value)
    except DecodeError:
        return None
    over = not grant.HasField("expire_time") or grant.expire_time.ToNanoseconds() <= now * 1e9
    if grant.state != resources_pb2.GRANT_STATE_ACTIVE or over or not grant.HasField("budget"):
        return None
    budget = grant.budget
    nanos = to_nanos(budget.max_amount.units, budget.max_amount.nanos) if budget.HasField("max_amount") else None
    currency = budget.max_amount.currency or budget.max_per_use.currency
    return Terms(budget.max_count or None, nanos, currency)


def _wanted(keys: Iterable[tuple[Account, int]]) -> Any:
    # Joined, not compared with a list: for a list of tuples SQLite reads the whole table.
    columns = (column("grant_id", Name), column("subject", Name), column("period", Int64))
    rows = sorted((account.grant, account.subject, period) for account, period in keys)
    return values(*columns).data(rows).cte("wanted")


def _same(table: Any, wanted: Any) -> Any:
    return (table.grant_id == wanted.grant_id) & (table.subject == wanted.subject) & (table.period == wanted.period)


def _account(account: Account, period: int) -> dict[str, Any]:
    return {"tenant": account.tenant, "grant_id": account.grant, "subject": account.subject, "period": period}
