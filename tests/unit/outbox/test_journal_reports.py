"""Reports of the journal: a real journal and shipper, a real control plane, real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sidestep.v1 import admin_pb2

from sidecar.journal.segment import SegmentWriter
from sidecar.journal.ship import Shipper
from sidecar.outbox.journal_reports import JournalReporter, ReportSettings
from sidecar.page import AgentWord, Page, WorkerWord
from sidecar.upstream import Upstream
from tests.fakes.admin import AdminServer
from tests.fakes.records import encoded_records

RUN_S = 20.0
MIB = 1 << 20


class Rig:
    """A journal directory with its page, shipper (that discards) and reporter to a control plane."""

    def __init__(self, folder: Path, address: str, interval_s: float = 0.05) -> None:
        self.directory = folder / "journal"
        if not (folder / "page").exists():
            Page.create(folder / "page", 2).close()
        self.page = Page(folder / "page")
        self.shipper = Shipper(self.directory, None, self.page.agent, resource=b"", quarantine_bytes=MIB)
        settings = ReportSettings(upstream=Upstream(address), sidecar="pod-1", interval_s=interval_s)
        self.reporter = JournalReporter(self.shipper, self.directory, self.page, settings)

    def writer(self, worker: int = 0, count: int = 0) -> SegmentWriter:
        writer = SegmentWriter(self.directory, f"w{worker}", MIB)
        if count:
            writer.append(encoded_records(count))
        return writer

    def word(self, word: AgentWord) -> int:
        return self.page.agent.get(word)

    def unrecorded(self, worker: int, count: int) -> None:
        self.page.worker(worker).add(WorkerWord.UNRECORDED, count)

    async def ship(self) -> None:
        while await self.shipper.step() == 0.0:
            pass

    async def report(self) -> None:
        """One report of what has changed; it must succeed."""
        assert await self.reporter.report_last(RUN_S)

    async def close(self) -> None:
        self.shipper.close()
        await self.reporter.close()
        self.page.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, server: AdminServer) -> Callable[[Callable[[Rig], Awaitable[None]]], None]:
    """Runs a scenario with a rig, within a time."""

    def run(scenario: Callable[[Rig], Awaitable[None]]) -> None:
        async def body() -> None:
            rig = Rig(tmp_path, server.address)
            try:
                async with asyncio.timeout(RUN_S):
                    await scenario(rig)
            finally:
                await rig.close()

        asyncio.run(body())

    return run


def known(server: AdminServer) -> dict[str, admin_pb2.JournalChainStatus]:
    chains = server.stub.ListJournalChains(admin_pb2.ListJournalChainsRequest()).chains
    assert all(status.sidecar == "pod-1" for status in chains)
    return {status.chain.chain: status for status in chains}


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_anchors_go_up_while_nothing_is_delivered(run: Any, server: AdminServer) -> None:
    async def scenario(rig: Rig) -> None:
        writer = rig.writer(0, 7)
        await rig.report()
        chain = known(server)[writer.chain].chain
        assert (chain.records, chain.head, chain.settled, chain.ended) == (7, writer.head, 0, False)
        writer.append(encoded_records(3))
        await rig.report()
        chain = known(server)[writer.chain].chain
        assert (chain.records, chain.head) == (10, writer.head)
        writer.close()

    run(scenario)


def test_it_reports_by_itself_and_only_what_changed(run: Any, server: AdminServer) -> None:
    async def scenario(rig: Rig) -> None:
        writer = rig.writer(0, 1)
        running = asyncio.create_task(rig.reporter.run())
        await until(lambda: rig.word(AgentWord.ANCHOR_REPORTS) == 1)
        other = rig.writer(1, 2)
        await until(lambda: rig.word(AgentWord.ANCHOR_REPORTS) == 2)
        first, second = (known(server)[each.chain] for each in (writer, other))
        assert first.last_report_time == first.first_report_time
        assert first.first_report_time.ToNanoseconds() < second.first_report_time.ToNanoseconds()
        # Now nothing changes, so nothing is said, for as long as many intervals.
        await asyncio.sleep(0.5)
        assert rig.word(AgentWord.ANCHOR_REPORTS) == 2
        running.cancel()
        writer.close()
        other.close()

    run(scenario)


def test_everything_is_said_again_from_time_to_time(
    run: Any, server: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.outbox.journal_reports._EVERYTHING_EVERY_S", 0.1)

    async def scenario(rig: Rig) -> None:
        writer = rig.writer(0, 1)
        running = asyncio.create_task(rig.reporter.run())
        await until(lambda: rig.word(AgentWord.ANCHOR_REPORTS) >= 3)
        running.cancel()
        status = known(server)[writer.chain]
        assert status.last_report_time.ToNanoseconds() > status.first_report_time.ToNanoseconds()
        assert status.conflicts == 0
        writer.close()

    run(scenario)


def test_what_was_settled_and_the_end_are_told_then_the_chain_is_forgotten(run: Any, server: AdminServer) -> None:
    async def scenario(rig: Rig) -> None:
        first = rig.writer(0, 5)
        await rig.report()
        first.close()
        await rig.ship()
        assert rig.shipper.heads() == []
        await rig.report()
        chain = known(server)[first.chain].chain
        assert (chain.records, chain.head, chain.settled, chain.discarded, chain.ended) == (5, first.head, 5, 5, True)
        # The worker's newest chain is kept in mind; an older one that was reported is not.
        assert first.chain in rig.shipper.tallies()
        second = rig.writer(0, 1)
        await rig.report()
        assert first.chain not in rig.shipper.tallies()
        reports = rig.word(AgentWord.ANCHOR_REPORTS)
        await rig.report()
        assert rig.word(AgentWord.ANCHOR_REPORTS) == reports
        second.close()

    run(scenario)


def test_a_chain_is_not_forgotten_before_its_end_is_known_above(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, "127.0.0.1:1")
        for _ in range(2):
            rig.writer(0, 3).close()
        await rig.ship()
        assert not await rig.reporter.report_last(5.0)
        assert len(rig.shipper.tallies()) == 2
        assert rig.word(AgentWord.ANCHOR_FAILURES) == 1
        await rig.close()

    asyncio.run(scenario())


def test_records_in_the_spool_are_told_with_their_anchor(run: Any, server: AdminServer, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        writer = rig.writer(0, 4)
        await rig.report()
        writer.append(encoded_records(2))
        writer.close()
        (tmp_path / "spool").mkdir()
        assert await rig.shipper.spool(tmp_path / "spool", "pod-1") == 6
        await rig.report()
        status = known(server)[writer.chain]
        assert (status.chain.records, status.chain.head) == (6, writer.head)
        assert (status.chain.settled, status.chain.spooled, status.chain.ended) == (0, 6, True)
        assert status.conflicts == 0

    run(scenario)


def test_an_agent_that_starts_again_contradicts_nothing(run: Any, server: AdminServer, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        writer = rig.writer(0, 5)
        rig.unrecorded(0, 2)
        await rig.ship()
        await rig.report()
        # SIGKILL: the cursor was not saved, so the records are sent again.
        await rig.reporter.close()
        again = Rig(tmp_path, server.address)
        rig.unrecorded(0, 1)
        await again.report()
        status = known(server)[writer.chain]
        assert (status.chain.settled, status.chain.unrecorded, status.conflicts) == (5, 3, 0)
        writer.close()
        await again.close()

    run(scenario)


def test_decisions_without_a_record_are_told_with_the_chain_they_belong_to(
    run: Any, server: AdminServer, tmp_path: Path
) -> None:
    async def scenario(rig: Rig) -> None:
        rig.unrecorded(1, 4)  # before the worker could write anything
        await rig.report()
        (placeholder,) = known(server)
        first = rig.writer(0, 1)
        rig.unrecorded(0, 2)
        await rig.report()
        first.close()
        second = rig.writer(0, 1)
        rig.unrecorded(0, 3)
        other = rig.writer(1, 1)
        rig.unrecorded(1, 5)
        await rig.report()
        told = {name: (status.chain.records, status.chain.unrecorded) for name, status in known(server).items()}
        assert told == {placeholder: (0, 4), first.chain: (1, 2), second.chain: (1, 3), other.chain: (1, 5)}
        assert placeholder.startswith("w1-")
        second.close()
        other.close()

    run(scenario)


def test_a_new_page_counts_from_zero(run: Any, server: AdminServer, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        writer = rig.writer(0, 1)
        rig.unrecorded(0, 5)
        await rig.report()
        # The supervisor starts again; before the agent looks, the worker has counted beyond the old page's word.
        Page.create(tmp_path / "page", 2).close()
        again = Rig(tmp_path, server.address)
        again.unrecorded(0, 7)
        await again.report()
        assert known(server)[writer.chain].chain.unrecorded == 12
        writer.close()
        await again.close()

    run(scenario)


def test_what_was_not_told_when_everything_was_killed_is_told_afterwards(
    run: Any, server: AdminServer, tmp_path: Path
) -> None:
    async def scenario(rig: Rig) -> None:
        async def restarted() -> int:
            Page.create(tmp_path / "page", 2).close()
            again = Rig(tmp_path, server.address)
            await again.report()
            await again.close()
            return known(server)[writer.chain].chain.unrecorded

        writer = rig.writer(0, 1)
        rig.unrecorded(0, 5)
        await rig.report()
        rig.unrecorded(0, 2)
        assert await restarted() == 7
        assert await restarted() == 7  # that page had nothing
        never_looked_at = Page.create(tmp_path / "page", 2)
        never_looked_at.worker(0).add(WorkerWord.UNRECORDED, 3)
        never_looked_at.close()
        assert await restarted() == 10
        writer.close()

    run(scenario)


def test_reports_go_on_however_long_a_wait_is_asked_for(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        assert rig.reporter._failed("RESOURCE_EXHAUSTED", 10.0) >= 10.0
        assert rig.reporter._failed("RESOURCE_EXHAUSTED", 1e9) < 400.0

    run(scenario)


def test_an_outage_delays_reports_and_spoils_none(run: Any, server: AdminServer) -> None:
    async def scenario(rig: Rig) -> None:
        writer = rig.writer(0, 1)
        running = asyncio.create_task(rig.reporter.run())
        await until(lambda: rig.word(AgentWord.ANCHOR_REPORTS) == 1)
        await asyncio.to_thread(server.down)
        writer.append(encoded_records(1))
        await until(lambda: rig.word(AgentWord.ANCHOR_FAILURES) >= 2)
        assert not await rig.reporter.report_last(1.0)
        await asyncio.to_thread(server.up)
        await until(lambda: known(server)[writer.chain].chain.records == 2)
        running.cancel()
        writer.close()

    run(scenario)


def test_what_a_node_crash_cut_off_is_a_contradiction_and_then_lost(
    run: Any, server: AdminServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        writer = rig.writer(0, 5)
        await rig.report()
        writer.close()
        await rig.reporter.close()
        for file in rig.directory.glob("w0-*.seg"):
            file.write_bytes(file.read_bytes()[:-10])
        again = Rig(tmp_path, server.address)
        await again.report()
        status = known(server)[writer.chain]
        assert (status.chain.records, status.chain.head, status.conflicts) == (5, writer.head, 1)
        assert writer.chain in caplog.text
        await again.ship()
        await again.report()
        chain = known(server)[writer.chain].chain
        assert (chain.records, chain.settled, chain.lost) == (5, 5, 1)
        await again.close()

    run(scenario)
