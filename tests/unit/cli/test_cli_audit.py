"""`sidestep sidecars audit`: what is lost is counted, what may still come is not; and groups answer to their plural."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from sidestep.v1 import admin_pb2, report_pb2

from controlplane.cli.audit import balance
from controlplane.cli.main import cli
from tests.fakes.admin import AdminServer

if TYPE_CHECKING:
    from conftest import Sidestep

NOW = 1_800_000_000.0


def status(
    records: int,
    settled: int,
    *,
    sidecar: str = "pod-1",
    silent_s: float = 0.0,
    connected: bool = False,
    conflicts: int = 0,
    **more: Any,
) -> admin_pb2.JournalChainStatus:
    made = admin_pb2.JournalChainStatus(sidecar=sidecar, connected=connected, conflicts=conflicts)
    made.chain.MergeFrom(report_pb2.JournalChain(records=records, settled=settled, **more))
    made.last_report_time.FromNanoseconds(int((NOW - silent_s) * 1e9))
    return made


@pytest.mark.parametrize(
    ("chain", "waiting", "in_spool", "lost"),
    [
        (status(10, 10), 0, 0, 0),
        (status(10, 4, silent_s=3599), 6, 0, 0),
        (status(10, 4, silent_s=3601), 0, 0, 6),
        (status(10, 10, silent_s=9e6), 0, 0, 0),
        # Connected: its reports fail, or nothing was decided; what it has is not gone.
        (status(10, 4, silent_s=9e6, connected=True), 6, 0, 0),
        (status(10, 4, spooled=6, silent_s=3601), 0, 6, 0),
        (status(10, 4, spooled=5, silent_s=3601), 0, 5, 1),
        # What was in the spool has been shipped since.
        (status(10, 10, spooled=6, silent_s=3601), 0, 0, 0),
        (status(10, 8, spooled=6, silent_s=3601), 0, 2, 0),
        (status(10, 10, lost=2, unrecorded=3), 0, 0, 5),
        (status(0, 0, unrecorded=3, ended=True), 0, 0, 3),
        (status(10, 6, quarantined=2, discarded=1, lost=1, silent_s=3601), 0, 0, 5),
    ],
)
def test_every_record_is_delivered_waiting_in_a_spool_or_lost(
    chain: admin_pb2.JournalChainStatus, waiting: int, in_spool: int, lost: int
) -> None:
    (account,) = balance([chain], NOW)
    assert (account.waiting, account.in_spool, account.lost) == (waiting, in_spool, lost)


def test_a_sidecar_that_came_back_without_its_disk_has_lost_what_it_had() -> None:
    old = status(10, 4, silent_s=5000, connected=True)
    new = status(3, 1, silent_s=2, connected=True)
    assert [account.lost for account in balance([old, new], NOW)] == [6, 0]
    # A shorter time than that between two full reports says nothing.
    old = status(10, 4, silent_s=800, connected=True)
    assert [account.lost for account in balance([old, new], NOW, lost_after_s=10.0)] == [0, 0]
    # Another sidecar's reports do not count.
    old = status(10, 4, silent_s=5000, connected=True, sidecar="pod-2")
    assert [account.lost for account in balance([old, new], NOW)] == [0, 0]


def report(server: AdminServer, sidecar: str, name: str, records: int, settled: int, **more: Any) -> None:
    chain = report_pb2.JournalChain(
        chain=name, records=records, head=bytes([records]) * 32 if records else b"", settled=settled, **more
    )
    chain.report_time.FromNanoseconds(time.time_ns())
    server.reports.ReportJournal(report_pb2.ReportJournalRequest(sidecar=sidecar, chains=[chain]))


def test_the_table_has_a_row_per_chain_and_nothing_lost_is_code_0(sidestep: Sidestep, server: AdminServer) -> None:
    report(server, "pod-1", "w0-0192f3c4a1b2", 10, 4)
    report(server, "pod-1", "w0-0192f3c4a1b3", 0, 0)
    report(server, "pod-2", "w0-0192f3c4a1b2", 7, 7, quarantined=1)
    lines = sidestep("sidecars", "audit").splitlines()
    assert lines[0].split() == (
        [
            "SIDECAR",
            "CHAIN",
            "ANCHORED",
            "DELIVERED",
            "WAITING",
            "LOST",
            "QUARANTINED",
            "SPOOLED",
            "CONFLICTS",
            "REPORTED",
        ]
    )
    assert [line.split()[:9] for line in lines[1:4]] == [
        ["pod-1", "w0-0192f3c4a1b2", "9", "3", "6", "0", "0", "0", "0"],
        ["pod-1", "w0-0192f3c4a1b3", "-", "-", "0", "0", "0", "0", "0"],
        ["pod-2", "w0-0192f3c4a1b2", "6", "6", "0", "0", "1", "0", "0"],
    ]
    assert lines[4] == "3 chains of 2 sidecars: 17 records anchored, 6 waiting, 0 in spools, 0 lost, 0 contradictions"
    assert len(sidestep("sidecars", "audit", "--sidecar", "pod-2").splitlines()) == 3


def test_what_is_lost_or_contradicted_is_code_13(sidestep: Sidestep, server: AdminServer) -> None:
    report(server, "pod-1", "w0-0192f3c4a1b2", 10, 4)
    assert "0 lost" in sidestep("sidecars", "audit")
    sidestep("sidecars", "audit", "--lost-after", "1ms", code=13)
    report(server, "pod-2", "w0-0192f3c4a1b2", 10, 10)
    report(server, "pod-2", "w0-0192f3c4a1b2", 9, 9)
    sidestep("sidecars", "audit", code=13)
    assert sidestep("sidecars", "audit", "--sidecar", "pod-1")


def test_json_says_what_verification_needs(sidestep: Sidestep, server: AdminServer) -> None:
    report(server, "pod-1", "w0-0192f3c4a1b2", 10, 4)
    (account,) = sidestep.json("sidecars", "audit")
    assert (account["lastAnchored"], account["lastDelivered"], account["waiting"], account["lostInAll"]) == (9, 3, 6, 0)
    assert account["chain"]["records"] == "10"
    assert "anchors" not in account
    (account,) = sidestep.json("sidecars", "audit", "--anchors")
    assert [anchor["records"] for anchor in account["anchors"]] == ["10"]


def test_pages_are_followed(sidestep: Sidestep, server: AdminServer) -> None:
    chains = [
        report_pb2.JournalChain(chain=f"w0-{n:012x}", records=1, head=bytes(32), settled=1) for n in range(1, 1001)
    ]
    for chain in chains:
        chain.report_time.GetCurrentTime()
    for sidecar in ("pod-1", "pod-2"):
        server.reports.ReportJournal(report_pb2.ReportJournalRequest(sidecar=sidecar, chains=chains))
    assert len(sidestep.json("sidecars", "audit")) == 2000


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("sidecars", "sidecar"),
        ("policies", "policy"),
        ("keys", "key"),
        ("devices", "device"),
        ("setting", "settings"),
        ("decision", "decisions"),
        ("journals", "journal"),
        ("postures", "posture"),
    ],
)
def test_groups_answer_to_singular_and_plural(name: str, family: str) -> None:
    said = [CliRunner().invoke(cli, [word, "--help"]) for word in (name, family)]
    assert [result.exit_code for result in said] == [0, 0]
    assert said[0].stdout.split("\n", 1)[1] == said[1].stdout.split("\n", 1)[1]
    listed = CliRunner().invoke(cli, ["--help"]).stdout
    assert f"  {family} " in listed
    assert f"  {name} " not in listed


def test_commands_that_are_no_groups_have_one_name() -> None:
    assert CliRunner().invoke(cli, ["revision", "--help"]).exit_code == 2
