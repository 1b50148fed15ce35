"""The table of used proofs: each `jti` of an issuer counts once, for one report.

A proof is claimed before what it proves is written. A report that is sent again claims the same, and what it proves is written
again, which changes nothing: so neither a crash in between nor a repetition does harm.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256

from sqlalchemy import Column, Double, Index, LargeBinary, Table, Text, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from controlplane.store.dialect import for_writing, translated_errors
from controlplane.store.tables import METADATA

PROOFS = Table(
    "proofs",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("issuer", Text, primary_key=True),
    # SHA-256, so that a long one takes no more room.
    Column("jti", LargeBinary, primary_key=True),
    # Of the whole report but for its time.
    Column("digest", LargeBinary, nullable=False),
    # From then on the proof would be refused anyway.
    Column("forget_at", Double, nullable=False),
    sqlite_with_rowid=False,
)
Index("proofs_forget", PROOFS.c.forget_at)


class ProofTable:
    """Proofs by (tenant, issuer, jti). All methods raise StoreError when the database fails."""

    def __init__(self, engine: AsyncEngine, writing: asyncio.Lock) -> None:
        self._writer = for_writing(engine)
        self._writing = writing

    async def claim(self, tenant: str, issuer: str, jti: str, digest: bytes, forget_at: float) -> bool:
        """Whether the proof is this report's: it was never used, or by the same report. Durable when it returns."""
        hashed = sha256(jti.encode()).digest()
        of_proof = (PROOFS.c.tenant == tenant, PROOFS.c.issuer == issuer, PROOFS.c.jti == hashed)
        with translated_errors():
            async with self._writing, self._writer.begin() as conn:
                known = await conn.scalar(select(PROOFS.c.digest).where(*of_proof))
                if known is None:
                    row = {"tenant": tenant, "issuer": issuer, "jti": hashed, "digest": digest, "forget_at": forget_at}
                    await conn.execute(insert(PROOFS), row)
        return known is None or bytes(known) == digest

    async def forget(self, before: float) -> int:
        """Removes what need not be remembered at this time; returns how many."""
        with translated_errors():
            async with self._writing, self._writer.begin() as conn:
                return (await conn.execute(delete(PROOFS).where(PROOFS.c.forget_at < before))).rowcount
