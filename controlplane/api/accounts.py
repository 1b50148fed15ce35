"""What AdminService tells of budgets' accounts."""

from __future__ import annotations

import time

from sidestep.v1 import admin_pb2

from controlplane.api.leases import to_room
from controlplane.api.paging import bad_token, page_size, read_token, write_token
from controlplane.errors import NotFoundError
from controlplane.store import Store
from controlplane.store.budgets import terms_of
from engine.books import Ledger, Terms
from engine.errors import InvalidInputError
from engine.escrow import NOTHING
from engine.names import Collection, Name, check_id


async def list_accounts(
    store: Store, name: Name, request: admin_pb2.ListBudgetAccountsRequest
) -> admin_pb2.ListBudgetAccountsResponse:
    """A page of accounts by subject and period. Raises NotFoundError if there is no such grant."""
    if name.collection is not Collection.GRANTS:
        raise InvalidInputError("name", "is not the name of a grant")
    if request.subject:
        check_id(request.subject, "subject")
    limit = page_size(request.page_size)
    # No id has a line break in it.
    subject, _, period = (read_token(request.page_token) or "\n0").rpartition("\n")
    if not (period.isascii() and period.isdigit() and len(period) < 19):
        raise bad_token()
    value = await store.get(name.tenant, Collection.GRANTS, name.id)
    if value is None:
        raise NotFoundError(request.name)
    terms = terms_of(value, time.time())
    found = await store.budgets.totals(
        name.tenant, name.id, subject=request.subject, after=(subject, int(period)), limit=limit
    )
    periods = await store.budgets.periods(name.tenant, {account.subject for account, _, _ in found})
    response = admin_pb2.ListBudgetAccountsResponse()
    for account, number, totals in found:
        currency = totals.currency or (terms.currency if terms else "")
        current = periods[account.subject].number == number
        line = response.accounts.add(
            subject=account.subject,
            period=number,
            current=current,
            spent=to_room(totals.spent, currency),
            cancelled=to_room(totals.cancelled, currency),
            held=to_room(totals.taken.minus(totals.spent).most(NOTHING), currency),
            holders=totals.holders,
        )
        started_at = periods[account.subject].started_at
        if current and started_at is not None:
            line.start_time.FromNanoseconds(int(started_at * 1e9))
        left = Ledger(terms={(name.tenant, name.id): terms}, totals={(account, number): totals}).left(account, number)
        if current and left is not None and not _other_currency(terms, totals.currency):
            line.left.CopyFrom(to_room(left.most(NOTHING), currency))
    if len(found) == limit:
        account, number, _ = found[-1]
        response.next_page_token = write_token(f"{account.subject}\n{number}")
    return response


def _other_currency(terms: Terms | None, currency: str) -> bool:
    return bool(terms and currency and terms.currency and terms.currency != currency)
