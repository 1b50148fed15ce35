"""The table of used proofs: each `jti` of an issuer counts once, for one report.

A proof is claimed before what it proves is written. A report that is sent again claims the same, and what it proves is written
again, which changes nothing: so neither a crash in between nor a repetition does harm.
"""

from __future__ import annotations

from hashlib import sha256

from sqlalchemy import Column, Index, LargeBinary, Table, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.store.columns import Name, Real
from controlplane.store.database import Database, Kind
from controlplane.store.dialect import Upsert
from controlplane.store.tables import METADATA

PROOFS = Table(
    "proofs",
    METADATA,
    Column("tenant", Name, primary_key=True),
    Column("issuer", Name, primary_key=True),
    # SHA-256, so that a long one takes no more room.
    Column("jti", LargeBinary, primary_key=True),
    # Of the whole report but for its time.
    Column("digest", LargeBinary, nullable=False),
    # From then on the proof would be refused anyway.
    Column("forget_at", Real, nullable=False),
    sqlite_with_rowid=False,
)
Index("proofs_forget", PROOFS.c.forget_at)

_CLAIM = Upsert(PROOFS, [])


class ProofTable:
    """Proofs by (tenant, issuer, jti). All methods raise StoreError when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, tenant: str, issuer: str, jti: str, digest: bytes, forget_at: float) -> bool:
        """Whether the proof is this report's: it was never used, or by the same report. Durable when it returns."""
        hashed = sha256(jti.encode()).digest()
        of_proof = (PROOFS.c.tenant == tenant, PROOFS.c.issuer == issuer, PROOFS.c.jti == hashed)
        row = {"tenant": tenant, "issuer": issuer, "jti": hashed, "digest": digest, "forget_at": forget_at}

        async def write(conn: AsyncConnection) -> bool:
            # Of two at once the second waits here for the first, and then finds its row.
            await conn.execute(_CLAIM.on(conn), row)
            known = await conn.scalar(select(PROOFS.c.digest).where(*of_proof))
            return known is not None and bytes(known) == digest

        return await self._database.write(Kind.PROOFS, write)

    async def forget(self, before: float) -> int:
        """Removes what need not be remembered at this time; returns how many."""

        async def write(conn: AsyncConnection) -> int:
            return (await conn.execute(delete(PROOFS).where(PROOFS.c.forget_at < before))).rowcount

        return await self._database.write(Kind.PROOFS, write)
