"""One journal directory, a shipper over it and what it counts, for tests of shipping."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from sidecar.journal.export import Exporter, open_exporter
from sidecar.journal.quarantine import Quarantined, decode_quarantined, quarantine_segments
from sidecar.journal.reader import SegmentReader
from sidecar.journal.segment import SegmentWriter
from sidecar.journal.ship import Shipper
from sidecar.journal.span import encode_resource
from sidecar.otel import Otlp
from sidecar.page import AgentWord, Page

MIB = 1 << 20
RESOURCE = encode_resource({"service.name": "sidestep"})


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Makes a test of a coroutine."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Bench:
    """One journal directory, its shipper's counters, and a way to run the shipper for a while."""

    def __init__(self, directory: Path) -> None:
        self.journal = directory / "journal"
        self.page = Page.create(directory / "page", 1)

    @classmethod
    def of(cls, data: Path) -> Bench:
        """That of a sidecar's data directory."""
        bench = cls.__new__(cls)
        bench.journal = data / "journal"
        bench.page = Page(data / "page")
        return bench

    def count(self, word: AgentWord) -> int:
        return self.page.agent.get(word)

    def writer(self, segment_bytes: int = 4 * MIB, name: str = "w0") -> SegmentWriter:
        return SegmentWriter(self.journal, name, 256 * MIB, segment_bytes=segment_bytes)

    def shipper(self, exporter: Exporter | None, quarantine_bytes: int = MIB) -> Shipper:
        return Shipper(self.journal, exporter, self.page.agent, resource=RESOURCE, quarantine_bytes=quarantine_bytes)

    @asynccontextmanager
    async def exporting(self, endpoint: str, timeout_s: float = 5.0) -> AsyncIterator[Exporter]:
        """An exporter over gRPC."""
        exporter = open_exporter(Otlp(endpoint, headers=(("x-tenant", "acme"),), timeout_s=timeout_s), "traces")
        try:
            yield exporter
        finally:
            await exporter.close()

    @asynccontextmanager
    async def shipping(
        self, endpoint: str, timeout_s: float = 5.0, quarantine_bytes: int = MIB
    ) -> AsyncIterator[Shipper]:
        """A running shipper; stopped and closed at the end."""
        async with self.exporting(endpoint, timeout_s) as exporter:
            shipper = self.shipper(exporter, quarantine_bytes)
            stop = asyncio.Event()
            task = asyncio.create_task(shipper.run(stop))
            try:
                yield shipper
            finally:
                stop.set()
                await task
                shipper.close()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.state()
            await asyncio.sleep(0.01)

    def state(self) -> str:
        return ", ".join(f"{word.name} {self.count(word)}" for word in AgentWord)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.journal.iterdir())

    def quarantined(self) -> list[Quarantined]:
        return quarantined(self.journal)


def quarantined(directory: Path) -> list[Quarantined]:
    """What a directory's quarantine holds."""
    found = []
    for name in quarantine_segments(directory):
        reader = SegmentReader(directory / name)
        while entries := reader.read(100_000):
            found += [decode_quarantined(entry.payload) for entry in entries]
        reader.close()
    return found


def ids(records: Iterable[bytes]) -> list[str]:
    """Decision ids, as spans spell them."""
    return [str(UUID(bytes=msgspec.msgpack.decode(record)["decision_id"])) for record in records]
