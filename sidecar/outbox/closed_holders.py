"""Closes holders whose workers have died: tells the control plane all they spent, by the journal, so that the rest comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Final, Protocol

import grpc
import msgspec
from sidestep.v1 import lease_pb2 as pb

from engine.escrow import Account, Room, Standing
from sidecar.journal.cursor import Spent
from sidecar.journal.recent import Found, id_ms
from sidecar.journal.record import Record, decode_record
from sidecar.lease.client import CLOSE_HOLDER
from sidecar.lease.holders import Holder, HolderFiles
from sidecar.lease.reservations import (
    REPEAT_S,
    Answered,
    Reservation,
    Reservations,
    ReservationsError,
    Spending,
)
from sidecar.lease.wire import close_requests
from sidecar.outbox.upward import Upward

LOOK_EVERY_S: Final = 0.25
"""How often it is looked for them."""

# An id is made before its record, by a clock that may be set meanwhile.
_SLACK_MS: Final = 10_000.0

_log = logging.getLogger(__name__)


class Journal(Protocol):
    """What knows the spends; a Shipper is one."""

    async def spent_by(self, chain: str, holder: str) -> Spent | None:
        """What a holder spent in all; None: it can never be told. Raises OSError."""

    async def requests(self, chain: str, ids: Collection[bytes]) -> Found:
        """The records of decisions that spent. Raises OSError."""

    def drop_spent(self) -> None:
        """Forgets what holders spent that are closed."""


class HolderCloser:
    """Runs in the agent. `directory`: of the holder files. `boot`: see Clock.boot_id. `reservations`: None if they cannot be
    used."""

    def __init__(
        self, journal: Journal, directory: Path, boot: str, upward: Upward, reservations: Reservations | None = None
    ) -> None:
        self._journal = journal
        self._files = HolderFiles(directory)
        self._boot = boot
        self._upward = upward
        self._reservations = reservations
        # Holders whose requests are dealt with, though the control plane does not know of them yet.
        self._resolved: set[str] = set()

    async def run(self) -> None:
        """Closes what there is to be closed, until cancelled."""
        while True:
            pause_s = LOOK_EVERY_S
            try:
                pause_s = max(pause_s, await self.step())
            except (OSError, ReservationsError) as error:
                _log.error("leases: %s", error)
            await asyncio.sleep(pause_s)

    async def step(self) -> float:
        """Closes all that can be. Returns how long to wait before the next try, seconds. Raises OSError,
        ReservationsError."""
        pause_s = 0.0
        dead = self._files.dead()
        self._resolved &= {holder.header.holder for holder in dead}
        for holder in dead:
            pause_s = max(pause_s, await self._close(holder))
        self._journal.drop_spent()
        return pause_s

    async def _close(self, holder: Holder) -> float:
        header = holder.header
        spent = await self._journal.spent_by(header.chain, header.holder) if holder.trusted(self._boot) else None
        named = None if spent is None else _standings(holder, spent)
        if named is None:
            _log.warning("leases: what holder %s spent cannot be told: its slices count as spent", header.holder)
            holder.path.unlink(missing_ok=True)
            return 0.0
        if self._reservations is not None and header.holder not in self._resolved:
            # First: a caller that got no answer asks again soon.
            await self._resolve(self._reservations, holder)
            self._resolved.add(header.holder)
        standings, currencies = named
        tenants = sorted({account.tenant for account in holder.accounts.values()})
        for request in close_requests(header.holder, self._upward.sidecar, standings, tenants, currencies):
            try:
                await self._upward.call(CLOSE_HOLDER, request, pb.CloseHolderResponse)
            except grpc.aio.AioRpcError as error:
                return self._upward.failed(error)
        holder.path.unlink(missing_ok=True)
        _log.info("leases: closed a holder of %s", header.chain)
        return 0.0

    async def _resolve(self, reservations: Reservations, holder: Holder) -> None:
        """Requests that the worker died over: those it has a record of were spent for, the others were not and may be now."""
        claims = reservations.unanswered(holder.header.holder)
        if not claims:
            return
        found = await self._journal.requests(holder.header.chain, {claimed.decision_id for _, claimed in claims})
        for key, claimed in claims:
            data = found.records.get(claimed.decision_id)
            if data is not None:
                reservations.resolve(key, claimed, _spending(holder, key, claimed, data))
            elif id_ms(claimed.decision_id) > found.since_ms + _SLACK_MS:
                reservations.resolve(key, claimed, None)
        _log.info("leases: %d requests that a worker died over can be asked again", len(claims))


def _spending(holder: Holder, key: bytes, claimed: Answered, data: bytes) -> Spending:
    record = decode_record(data)
    assert isinstance(record, Record)
    spend = record.decision.spend
    assert spend is not None
    account = holder.accounts[spend.slice]
    reservation = Reservation(
        account.tenant,
        account.grant,
        account.subject,
        account.period,
        spend.holder,
        spend.uses,
        spend.nanos,
        claimed.until - REPEAT_S,
        record.caller,
        spend.currency,
        key=key,
    )
    decision = msgspec.msgpack.encode(record.decision)
    answered = Answered(claimed.content, claimed.until, decision, b"", record.decision_id, holder.header.holder)
    return Spending(record.decision_id, reservation, key, answered)


def _standings(holder: Holder, spent: Spent) -> tuple[list[Standing], dict[Account, str]] | None:
    """The holder's totals, and the currencies of its accounts. None: something was spent of an account the file does not name."""
    standings: list[Standing] = []
    currencies: dict[Account, str] = {}
    for number, (uses, nanos, currency) in sorted(spent.slices.items()):
        named = holder.accounts.get(number)
        if named is None or not named.grant:
            return None
        account = Account(named.tenant, named.grant, named.subject)
        standings.append(Standing(account, named.period, spent=Room(uses, nanos)))
        if currency:
            currencies[account] = currency
    return standings, currencies
