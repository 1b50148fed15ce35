"""Reports of journals: over real gRPC, into a real database, and what is told of them."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import admin_pb2, report_pb2, resources_pb2

from controlplane.errors import StoreError
from controlplane.store import Store, Write
from controlplane.store.database import Kind
from controlplane.store.journals import _find
from controlplane.store.tables import METADATA, SCHEMA_VERSION
from engine.names import Collection
from tests.fakes.admin import AdminServer

CHAIN = "w0-0192f3c4a1b2"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    with AdminServer(tmp_path) as running:
        yield running


def chain(records: int, name: str = CHAIN, at: float = 1_000.0, **more: Any) -> report_pb2.JournalChain:
    head = more.pop("head", bytes([records]) * 32 if records else b"")
    made = report_pb2.JournalChain(chain=name, records=records, head=head, **more)
    made.report_time.FromNanoseconds(int(at * 1e9))
    return made


def report(server: AdminServer, sidecar: str, *chains: report_pb2.JournalChain) -> list[str]:
    request = report_pb2.ReportJournalRequest(sidecar=sidecar, chains=chains)
    return list(server.reports.ReportJournal(request).conflicts)


def listed(server: AdminServer, **request: Any) -> list[admin_pb2.JournalChainStatus]:
    return list(server.stub.ListJournalChains(admin_pb2.ListJournalChainsRequest(**request)).chains)


def test_chains_are_told_as_reported(server: AdminServer) -> None:
    before = time.time()
    sent = chain(9, settled=7, quarantined=2, discarded=1, lost=1, unrecorded=4, spooled=2, ended=True)
    assert report(server, "pod-1", sent, chain(0, "w1-0192f3c4a1b2")) == []
    first, second = listed(server)
    assert first.chain == sent
    assert (first.sidecar, first.conflicts, first.connected) == ("pod-1", 0, False)
    assert before <= first.first_report_time.ToNanoseconds() / 1e9 <= time.time()
    assert first.first_report_time == first.last_report_time
    assert (second.chain.chain, second.chain.records, second.chain.head) == ("w1-0192f3c4a1b2", 0, b"")


def test_a_report_without_chains_changes_nothing(server: AdminServer) -> None:
    assert report(server, "pod-1") == []
    assert listed(server) == []


def test_a_contradiction_is_answered_shown_and_the_anchor_kept(server: AdminServer) -> None:
    assert report(server, "pod-1", chain(9), chain(4, "w1-0192f3c4a1b2")) == []
    assert report(server, "pod-1", chain(8, at=1_001), chain(5, "w1-0192f3c4a1b2", at=1_001)) == [CHAIN]
    first, second = listed(server)
    assert (first.chain.records, first.chain.head, first.conflicts) == (9, bytes([9]) * 32, 1)
    assert (second.chain.records, second.conflicts) == (5, 0)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("sidecar", report_pb2.ReportJournalRequest(chains=[chain(1)])),
        ("sidecar", report_pb2.ReportJournalRequest(sidecar="x" * 254, chains=[chain(1)])),
        ("sidecar", report_pb2.ReportJournalRequest(sidecar="a\nb", chains=[chain(1)])),
        ("chains[0].chain", report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(1, "q-0192f3c4a1b2")])),
        ("chains[0].chain", report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(1, "w0-0192F3C4A1B2")])),
        ("chains[0].chain", report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(1, CHAIN + "\n")])),
        ("chains[1].chain", report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(1), chain(1)])),
        ("chains[0].head", report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(0, head=b"x" * 32)])),
        ("chains[0].head", report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(1, head=b"x")])),
        ("chains[0].settled", report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(1, settled=2)])),
        ("chains[0].lost", report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(1, lost=2**63)])),
        ("chains[0].report_time", report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(1, at=0)])),
        ("chains[0].report_time", report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(1, at=9.3e9)])),
        (
            "chains",
            report_pb2.ReportJournalRequest(sidecar="p", chains=[chain(1, f"w0-{n:012x}") for n in range(1001)]),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_report_that_cannot_be_one_is_refused_with_the_field(
    server: AdminServer, field: str, request_: report_pb2.ReportJournalRequest
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        server.reports.ReportJournal(request_)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error.value.details()).startswith(f"{field}: ")
    assert listed(server) == []


def test_lists_come_in_pages_of_one_sidecar_or_all(server: AdminServer) -> None:
    for sidecar in ("b", "a", "a b"):
        report(server, sidecar, *(chain(n + 1, f"w{n}-0192f3c4a1b2") for n in (2, 0, 1)))
    wanted = [(sidecar, f"w{n}-0192f3c4a1b2") for sidecar in ("a", "a b", "b") for n in range(3)]
    seen: list[tuple[str, str]] = []
    token, pages = "", 0
    while pages == 0 or token:
        response = server.stub.ListJournalChains(admin_pb2.ListJournalChainsRequest(page_size=4, page_token=token))
        seen += [(status.sidecar, status.chain.chain) for status in response.chains]
        token, pages = response.next_page_token, pages + 1
    assert (seen, pages) == (wanted, 3)
    assert [status.sidecar for status in listed(server, sidecar="a")] == ["a"] * 3
    assert listed(server, sidecar="nobody") == []
    for bad in ({"page_size": 1001}, {"page_token": "!"}, {"sidecar": "x" * 300}):
        with pytest.raises(grpc.RpcError) as error:
            listed(server, **bad)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_sidecar_with_a_stream_is_told_to_be_connected(server: AdminServer) -> None:
    report(server, "pod-1", chain(1))
    report(server, "pod-2", chain(1))
    status = admin_pb2.SidecarStatus(sidecar="pod-1", connected=True)
    status.seen_time.GetCurrentTime()

    async def connect() -> None:
        server.store.record_sidecar(status)

    server.run(connect())
    assert [status.connected for status in listed(server)] == [True, False]
    server.run(server.store.flush_sidecars())
    other = server.run(Store.open(server._url))  # another process's view
    assert server.run(other.connected_sidecars({"pod-1", "pod-2"})) == {"pod-1"}
    server.run(other.close())


def test_anchors_are_thinned_and_end_with_the_newest(server: AdminServer, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.time()
    for step in range(1, 31):
        monkeypatch.setattr("controlplane.store.journals.time.time", lambda step=step: begin + 5 * step)
        report(server, "pod-1", chain(step, at=begin + step))
    request = admin_pb2.ListJournalAnchorsRequest(sidecar="pod-1", chain=CHAIN)
    anchors = list(server.stub.ListJournalAnchors(request).anchors)
    assert [anchor.records for anchor in anchors] == [1, 13, 25, 30]
    assert [anchor.head for anchor in anchors] == [bytes([n]) * 32 for n in (1, 13, 25, 30)]
    assert anchors[-1].report_time.ToNanoseconds() == int((begin + 150) * 1e9)
    # Page by page, the newest too.
    seen: list[int] = []
    request.page_size = 1
    while True:
        response = server.stub.ListJournalAnchors(request)
        seen += [anchor.records for anchor in response.anchors]
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert seen == [1, 13, 25, 30]
    for sidecar, name, code in (
        ("pod-2", CHAIN, grpc.StatusCode.NOT_FOUND),
        ("pod-1", "w1-0192f3c4a1b2", grpc.StatusCode.NOT_FOUND),
        ("pod-1", "q", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as error:
            server.stub.ListJournalAnchors(admin_pb2.ListJournalAnchorsRequest(sidecar=sidecar, chain=name))
        assert error.value.code() is code


def test_reports_that_come_together_are_written_together_and_each_gets_its_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await Store.open(f"sqlite+aiosqlite:///{tmp_path}/cp.db")
        try:
            await store.journals.report("pod-007", [chain(9, at=2_000)])
            begun = 0
            real = store.journals._take_group

            def counted() -> Any:
                nonlocal begun
                group = real()
                begun += bool(group)
                return group

            store.journals._take_group = counted  # type: ignore[method-assign]
            answers = await asyncio.gather(
                *(store.journals.report(f"pod-{n:03}", [chain(3, at=3_000)]) for n in range(300))
            )
            assert [n for n, answer in enumerate(answers) if answer] == [7]
            assert begun <= 2
            chains = await store.journals.read("", ("", ""), 1_000)
            assert {status.sidecar: status.chain.records for status in chains} == {
                f"pod-{n:03}": 9 if n == 7 else 3 for n in range(300)
            }
        finally:
            await store.close()

    asyncio.run(scenario())


def test_what_nobody_waits_for_is_not_written_and_closing_loses_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        url = f"sqlite+aiosqlite:///{tmp_path}/cp.db"
        store = await Store.open(url)
        async with store.journals._database.turn(Kind.JOURNALS):
            calls = []
            for sidecar in ("first", "gone", "late"):  # the first is being written, the others wait behind it
                calls.append(asyncio.create_task(store.journals.report(sidecar, [chain(1)])))
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            calls[1].cancel()
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0)
            assert not closing.done()
        assert await calls[0] == await calls[2] == []
        await closing
        store = await Store.open(url)
        assert [status.sidecar for status in await store.journals.read("", ("", ""), 10)] == ["first", "late"]
        await store.close()

    asyncio.run(scenario())


def test_a_database_out_of_reach_is_unavailable_and_what_follows_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.store.dialect._BUSY_TIMEOUT_S", 0.05)
    with AdminServer(tmp_path) as server:
        report(server, "pod-1", chain(1))
        locked = sqlite3.connect(tmp_path / "admin.db", isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")
        with pytest.raises(grpc.RpcError) as error:
            report(server, "pod-1", chain(2, at=1_001))
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        locked.execute("ROLLBACK")
        locked.close()
        assert report(server, "pod-1", chain(2, at=1_001)) == []
        assert [status.chain.records for status in listed(server)] == [2]


def test_chains_no_longer_reported_are_forgotten_with_their_anchors(
    server: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("controlplane.store.journals.time.time", lambda: now - 100)
    for n in range(40):
        report(server, f"old-{n}", chain(1))
    monkeypatch.setattr("controlplane.store.journals.time.time", lambda: now)
    report(server, "new", chain(1))
    report(server, "old-3", chain(2, at=1_001))
    assert server.run(server.store.journals.forget(now - 50)) == 39
    assert [status.sidecar for status in listed(server)] == ["new", "old-3"]
    database = sqlite3.connect(server._url.removeprefix("sqlite+aiosqlite:///"))
    assert database.execute("SELECT DISTINCT sidecar FROM journal_anchors ORDER BY 1").fetchall() == [
        ("new",),
        ("old-3",),
    ]
    database.close()


def test_chains_are_found_by_their_keys(tmp_path: Path) -> None:
    """A query that reads the table would make every report slower with every pod that ever lived."""

    async def scenario() -> list[str]:
        store = await Store.open(f"sqlite+aiosqlite:///{tmp_path}/cp.db")
        query = _find([("a", "b"), ("c", "d")]).compile(dialect=store._database._engine.dialect)
        parameters = tuple(query.params[name] for name in query.positiontup or ())
        try:
            async with store._database._engine.connect() as conn:
                plan = await conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", parameters)
                return [str(tuple(row)[-1]) for row in plan]
        finally:
            await store.close()

    plan = asyncio.run(scenario())
    assert "SEARCH journal_chains USING PRIMARY KEY (sidecar=? AND chain=?)" in plan
    assert "SCAN journal_chains" not in plan


_VERSION_1 = """
CREATE TABLE schema (id INTEGER NOT NULL, version INTEGER NOT NULL, epoch BIGINT NOT NULL, PRIMARY KEY (id));
CREATE TABLE heads (tenant TEXT NOT NULL, lane INTEGER NOT NULL, revision BIGINT NOT NULL, digest BLOB NOT NULL,
    digest_key BLOB NOT NULL, PRIMARY KEY (tenant, lane));
CREATE TABLE records (tenant TEXT NOT NULL, collection INTEGER NOT NULL, id TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (tenant, collection, id)) WITHOUT ROWID;
CREATE TABLE changes (tenant TEXT NOT NULL, lane INTEGER NOT NULL, revision BIGINT NOT NULL, records INTEGER NOT NULL,
    bytes INTEGER NOT NULL, delta BLOB NOT NULL, PRIMARY KEY (tenant, lane, revision));
CREATE TABLE sidecars (sidecar TEXT NOT NULL, connected BOOLEAN NOT NULL, seen_at DOUBLE NOT NULL,
    recorded_at DOUBLE NOT NULL, status BLOB NOT NULL, PRIMARY KEY (sidecar));
CREATE INDEX sidecars_seen ON sidecars (seen_at);
"""


def version_1(path: Path) -> None:
    """A database as version 1 made it, with a tenant and two records."""
    database = sqlite3.connect(path)
    database.executescript(_VERSION_1)
    database.execute("INSERT INTO schema VALUES (1, 1, 5)")
    for lane in (1, 2):
        database.execute("INSERT INTO heads VALUES ('acme', ?, ?, zeroblob(32), zeroblob(32))", (lane, 8 - lane))
    subject = resources_pb2.Subject(name="tenants/acme/subjects/alice").SerializeToString()
    database.execute("INSERT INTO records VALUES ('acme', ?, 'alice', ?)", (int(Collection.SUBJECTS), subject))
    database.commit()
    database.close()


def test_a_database_of_the_last_version_gains_the_tables_and_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    version_1(path)

    async def scenario() -> None:
        stores = await asyncio.gather(*(Store.open(f"sqlite+aiosqlite:///{path}") for _ in range(3)))
        store = stores[0]
        try:
            assert [(head.epoch, head.revision) for head in await store.heads()] == [(5, 7), (5, 6)]
            assert await store.count("acme", Collection.SUBJECTS) == 1
            assert (await store.commit("acme", [Write(Collection.GRANTS, "g", b"x")])).changed == 1
            assert await store.journals.report("pod-1", [chain(1)]) == []
            assert len(await store.journals.read("", ("", ""), 10)) == 1
        finally:
            for each in stores:
                await each.close()

    asyncio.run(scenario())
    database = sqlite3.connect(path)
    assert database.execute("SELECT version FROM schema").fetchall() == [(SCHEMA_VERSION,)]
    names = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names >= set(METADATA.tables)
    database.close()


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.db"
    version_1(path)

    def broken(_conn: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("controlplane.store.rules.begin_history", broken)
    with pytest.raises(StoreError):
        asyncio.run(Store.open(f"sqlite+aiosqlite:///{path}"))
    database = sqlite3.connect(path)
    assert database.execute("SELECT version FROM schema").fetchall() == [(1,)]
    assert database.execute("SELECT name FROM sqlite_master WHERE name LIKE 'journal%'").fetchall() == []
    database.close()
