"""`sidestep journal`: verify finds what is missing and what was altered; ship delivers what was left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from click.testing import CliRunner
from sidestep.v1 import admin_pb2, report_pb2

from controlplane.cli.main import cli
from sidecar.journal.chain import genesis
from sidecar.journal.cursor import CursorFile, Tally, save_cursor
from sidecar.journal.record import encode_record
from sidecar.journal.resource import save_resource
from sidecar.journal.segment import SegmentWriter
from tests.fakes.admin import AdminServer
from tests.fakes.journal import read_entries
from tests.fakes.otlp import OtlpReceiver, always
from tests.fakes.otlp_json import export_request, write_lines
from tests.fakes.records import encoded_records, make_record

if TYPE_CHECKING:
    from conftest import Sidestep

MIB = 1 << 20


def make_journal(folder: Path, count: int, sidecar: str = "pod-1") -> SegmentWriter:
    """A journal folder whose writer has ended."""
    save_resource(folder, {"service.name": "sidestep", "service.instance.id": sidecar} if sidecar else {})
    writer = SegmentWriter(folder, "w0", 64 * MIB)
    writer.append([encode_record(make_record(duration_us=100 + n)) for n in range(count)])
    writer.close()
    return writer


def report(server: AdminServer, writer: SegmentWriter, sidecar: str = "pod-1", **more: Any) -> None:
    """Anchors all that the writer has written."""
    chain = report_pb2.JournalChain(chain=writer.chain, records=writer.records, head=writer.head, **more)
    chain.report_time.FromNanoseconds(time.time_ns())
    server.reports.ReportJournal(report_pb2.ReportJournalRequest(sidecar=sidecar, chains=[chain]))


def export(folder: Path, path: Path, *, leave_out: tuple[int, ...] = (), sidecar: str = "pod-1") -> str:
    entries = [(name.chain, entry) for name, entry in read_entries(folder) if entry.sequence not in leave_out]
    write_lines(path, [export_request(entries[at : at + 3], sidecar) for at in range(0, len(entries), 3)])
    return str(path)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "data" / "journal"


def test_a_whole_folder_and_a_whole_export_are_code_0(
    sidestep: Sidestep, server: AdminServer, journal: Path, tmp_path: Path
) -> None:
    writer = make_journal(journal, 7)
    report(server, writer)
    shown = sidestep("journal", "verify", str(journal)).splitlines()
    assert shown == [f"pod-1  {writer.chain}  whole  7 records, 7 anchored", "1 chain: 1 whole, 0 not"]
    # Given with what it is a copy of, nothing is missed and nothing counted twice.
    exported = export(journal, tmp_path / "export.json")
    assert sidestep("journal", "verify", str(tmp_path / "data"), exported).splitlines() == shown
    report(server, writer, settled=7)
    assert sidestep("journal", "verify", exported).splitlines() == shown
    (result,) = sidestep.json("journal", "verify", exported)
    assert (result["whole"], result["known"], result["records"], result["anchored"]) == (True, True, 7, 7)
    assert result["findings"] == []


def test_a_gap_a_cut_and_an_edit_are_found_and_named(
    sidestep: Sidestep, server: AdminServer, journal: Path, tmp_path: Path
) -> None:
    writer = make_journal(journal, 9)
    report(server, writer, settled=9)
    gap = export(journal, tmp_path / "gap.json", leave_out=(3, 4))
    sidestep("journal", "verify", gap, code=13)
    result = CliRunner(env={"SIDESTEP_SERVER": server.address}).invoke(cli, ["journal", "verify", gap])
    assert "NOT WHOLE" in result.stdout
    assert "records 3 to 4: missing" in result.stdout
    cut = export(journal, tmp_path / "cut.json", leave_out=(7, 8))
    result = CliRunner(env={"SIDESTEP_SERVER": server.address}).invoke(cli, ["journal", "verify", cut])
    assert (result.exit_code, "records 7 to 8: missing at the end" in result.stdout) == (13, True)
    # Offline, a cut end cannot be told; a gap can.
    assert "whole" in sidestep("journal", "verify", cut, "--offline")
    sidestep("journal", "verify", gap, "--offline", code=13)
    # An outcome changed in the export.
    document = json.loads((tmp_path / "cut.json").read_text().splitlines()[0])
    attributes = document["resourceSpans"][0]["scopeSpans"][0]["spans"][1]["attributes"]
    (outcome,) = (each for each in attributes if each["key"] == "sidestep.outcome")
    outcome["value"]["stringValue"] = "deny"
    (tmp_path / "edit.json").write_text(json.dumps(document))
    result = CliRunner().invoke(cli, ["journal", "verify", "--offline", "-o", "json", str(tmp_path / "edit.json")])
    (found,) = json.loads(result.stdout)
    assert (result.exit_code, [(each["kind"], each["first"]) for each in found["findings"] if each["fault"]]) == (
        13,
        [("altered", 1)],
    )


def test_records_written_anew_do_not_match_their_anchor(
    sidestep: Sidestep, server: AdminServer, journal: Path, tmp_path: Path
) -> None:
    report(server, make_journal(journal, 5), settled=5)
    forged = tmp_path / "forged"
    writer = SegmentWriter(forged, "w0", MIB)
    (genuine,) = {name for name, _ in read_entries(journal)}
    writer._start = genuine.start
    writer._head = genesis(genuine.chain)
    writer.append(encoded_records(5))
    writer.close()
    exported = export(forged, tmp_path / "forged.json")
    assert "whole" in sidestep("journal", "verify", exported, "--offline")
    sidestep("journal", "verify", exported, code=13)


def test_a_chain_nothing_was_reported_of_is_a_finding(
    sidestep: Sidestep, server: AdminServer, journal: Path, tmp_path: Path
) -> None:
    """Or whoever renames a sidecar in an export would escape its anchors."""
    report(server, make_journal(journal, 3), settled=3)
    renamed = export(journal, tmp_path / "renamed.json", sidecar="pod-9")
    sidestep("journal", "verify", renamed, code=13)
    result = CliRunner(env={"SIDESTEP_SERVER": server.address}).invoke(
        cli, ["journal", "verify", "-o", "json", renamed]
    )
    assert [(each["sidecar"], each["known"], each["whole"]) for each in json.loads(result.stdout)] == [
        ("pod-9", False, False)
    ]


def test_chains_that_are_not_there_at_all_are_missed(
    sidestep: Sidestep, server: AdminServer, journal: Path, tmp_path: Path
) -> None:
    first = make_journal(journal, 3)
    exported = export(journal, tmp_path / "one.json")
    second = make_journal(tmp_path / "other" / "journal", 2)
    third = make_journal(tmp_path / "third" / "journal", 4, "pod-2")
    report(server, first, settled=3)
    assert sidestep("journal", "verify", exported)
    # Another sidecar's chains are missed only if it is asked for.
    report(server, third, "pod-2", settled=4)
    assert sidestep("journal", "verify", exported)
    sidestep("journal", "verify", exported, "--sidecar", "pod-2", code=13)
    sidestep("journal", "verify", exported, "--all", code=13)
    # Another chain of the same sidecar is missed in any case, unless it is out of the time looked at.
    report(server, second, settled=2)
    sidestep("journal", "verify", exported, code=13)
    assert sidestep("journal", "verify", exported, "--since", "+1h")


def test_what_the_folder_has_dealt_with_is_not_missed_in_it(
    sidestep: Sidestep, server: AdminServer, journal: Path
) -> None:
    """The folder knows of deliveries that the last report did not know of yet."""
    writer = make_journal(journal, 6)
    report(server, writer, settled=2)
    for file in journal.glob("*.seg"):
        file.unlink()
    sidestep("journal", "verify", str(journal), code=13)
    save_cursor(journal, CursorFile(chains={writer.chain: Tally(settled=6, head=writer.head)}).encode())
    assert "records 0 to 5: not in this folder" in sidestep("journal", "verify", str(journal))


def test_anchors_can_come_from_a_file(sidestep: Sidestep, server: AdminServer, journal: Path, tmp_path: Path) -> None:
    writer = make_journal(journal, 4)
    report(server, writer, settled=4)
    saved = sidestep.file("anchors.json", sidestep("-o", "json", "sidecars", "audit", "--anchors"))
    whole, cut = (export(journal, tmp_path / f"{len(left)}.json", leave_out=left) for left in ((), (3,)))
    runner = CliRunner(env={"SIDESTEP_SERVER": "127.0.0.1:1"})
    assert runner.invoke(cli, ["journal", "verify", whole, "--anchors", saved]).exit_code == 0
    assert runner.invoke(cli, ["journal", "verify", cut, "--anchors", saved]).exit_code == 13
    assert runner.invoke(cli, ["journal", "verify", whole]).exit_code == 3


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        (["verify"], 2, "Missing argument"),
        (["verify", "nowhere.json"], 2, "nowhere.json: No such file"),
        (["verify", "EMPTY"], 2, "there is no journal in this folder"),
        (["verify", "NOTHING"], 4, "no record was found"),
        (["verify", "EMPTY", "--offline", "--all"], 2, "--offline: excludes"),
        (["verify", "EMPTY", "--anchors", "x", "--since", "now"], 2, "--since: "),
        (["verify", "NOTHING", "--anchors", "nowhere"], 2, "nowhere: No such file"),
        (["verify", "NOTHING", "--anchors", "NOTHING"], 2, "not JSON"),
        (["verify", "NOTHING", "--anchors", "OTHER"], 2, "is not what `sidestep sidecars audit -o json` writes"),
        (["ship", "nowhere"], 2, "does not exist"),
        (["ship", "EMPTY"], 2, "there is no journal in it"),
    ],
)
def test_errors_are_one_line(sidestep: Sidestep, tmp_path: Path, args: list[str], code: int, problem: str) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "NOTHING").write_text("\n")
    (tmp_path / "OTHER").write_text('[{"sidecar": 1}]')
    places = {name: str(tmp_path / name) for name in ("EMPTY", "NOTHING", "OTHER")}
    shown = sidestep("journal", *(places.get(arg, arg) for arg in args), code=code)
    assert problem in shown
    assert shown.startswith("error: ")
    assert len(shown.splitlines()) == 1


def test_a_line_that_cannot_be_read_is_a_finding(
    sidestep: Sidestep, server: AdminServer, journal: Path, tmp_path: Path
) -> None:
    report(server, make_journal(journal, 4), settled=4)
    exported = Path(export(journal, tmp_path / "export.json"))
    with exported.open("a") as file:
        file.write('{"resourceSpans": [\n')
    assert f"warning: {exported}:3: " in sidestep("journal", "verify", str(exported), code=13)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{running.endpoint}")
        yield running


def chains(server: AdminServer) -> dict[str, admin_pb2.JournalChainStatus]:
    listed = server.stub.ListJournalChains(admin_pb2.ListJournalChainsRequest()).chains
    return {status.chain.chain: status for status in listed}


def test_a_spool_is_shipped_and_the_control_plane_told(
    sidestep: Sidestep, server: AdminServer, receiver: OtlpReceiver, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    writers = [make_journal(spool / sidecar / "1-2", 5, sidecar) for sidecar in ("pod-1", "pod-2")]
    for writer, sidecar in zip(writers, ("pod-1", "pod-2"), strict=True):
        report(server, writer, sidecar, spooled=5, ended=True)
    shown = sidestep("journal", "ship", str(spool)).splitlines()
    assert shown == [f"{spool}/{sidecar}/1-2: 5 records of {sidecar} shipped, 0 left" for sidecar in ("pod-1", "pod-2")]
    assert len(receiver.spans) == 10
    assert {resource["service.instance.id"] for resource in receiver.resources} == {"pod-1", "pod-2"}
    for writer in writers:
        status = chains(server)[writer.chain]
        assert (status.chain.settled, status.chain.records, status.conflicts) == (5, 5, 0)
    assert "0 in spools, 0 lost" in sidestep("sidecars", "audit", "--lost-after", "1ms")
    assert not list(spool.rglob("1-2"))


def test_a_shipment_that_could_not_be_reported_is_told_the_next_time(
    sidestep: Sidestep, server: AdminServer, receiver: OtlpReceiver, tmp_path: Path
) -> None:
    folder = tmp_path / "spool" / "pod-1" / "1-2"
    writer = make_journal(folder, 5)
    report(server, writer, spooled=5, ended=True)
    server.down()
    assert "the control plane was not told" in sidestep("journal", "ship", str(tmp_path / "spool"), code=3)
    assert len(receiver.spans) == 5
    server.up()
    assert f"{folder}: 0 records of pod-1 shipped, 0 left" in sidestep("journal", "ship", str(tmp_path / "spool"))
    assert chains(server)[writer.chain].chain.settled == 5
    assert len(receiver.spans) == 5
    assert not folder.exists()


def test_without_report_no_control_plane_is_needed(receiver: OtlpReceiver, tmp_path: Path) -> None:
    make_journal(tmp_path / "spool" / "pod-1" / "1-2", 5)
    runner = CliRunner(env={"SIDESTEP_SERVER": "127.0.0.1:1"})
    result = runner.invoke(cli, ["journal", "ship", "--no-report", "-o", "json", str(tmp_path / "spool")])
    assert result.exit_code == 0, result.stderr
    (shipped,) = json.loads(result.stdout)
    assert (shipped["sidecar"], shipped["shipped"], shipped["left"], shipped["problem"]) == ("pod-1", 5, 0, "")
    assert not (tmp_path / "spool" / "pod-1" / "1-2").exists()


def test_what_the_collector_does_not_take_stays_and_is_reported_right(
    sidestep: Sidestep, server: AdminServer, receiver: OtlpReceiver, journal: Path
) -> None:
    writer = make_journal(journal, 600)  # more than one batch
    report(server, writer, ended=True)

    def deny_after_the_first(request: Any) -> None:
        if receiver.spans:
            always(grpc.StatusCode.PERMISSION_DENIED)(request)

    receiver.fail = deny_after_the_first
    assert "the collector takes no more" in sidestep("journal", "ship", str(journal), code=3)
    status = chains(server)[writer.chain]
    assert (status.chain.settled, status.chain.records, status.conflicts) == (512, 600, 0)
    receiver.fail = None
    sidestep("journal", "ship", str(journal))
    status = chains(server)[writer.chain]
    assert (status.chain.settled, status.chain.records, status.conflicts) == (600, 600, 0)


def test_refused_records_are_set_aside_and_can_be_shipped_later(
    sidestep: Sidestep, server: AdminServer, receiver: OtlpReceiver, journal: Path
) -> None:
    writer = make_journal(journal, 3)
    report(server, writer, ended=True)

    def refuse_one(request: Any) -> None:
        for span in request.resource_spans[0].scope_spans[0].spans:
            if any(pair.key == "sidestep.journal.seq" and pair.value.int_value == 1 for pair in span.attributes):
                always(grpc.StatusCode.INVALID_ARGUMENT)(request)

    receiver.fail = refuse_one
    assert "see --quarantined" in sidestep("journal", "ship", str(journal), code=13)
    chain = chains(server)[writer.chain].chain
    assert (chain.settled, chain.quarantined) == (3, 1)
    receiver.fail = None
    sidestep("journal", "ship", "--quarantined", str(journal))
    assert len({span.span_id for span in receiver.spans}) == 3


def test_a_folder_whose_sidecar_runs_is_left_alone(sidestep: Sidestep, receiver: OtlpReceiver, journal: Path) -> None:
    save_resource(journal, {"service.instance.id": "pod-1"})
    writer = SegmentWriter(journal, "w0", MIB)
    writer.append(encoded_records(2))
    assert "its sidecar is running" in sidestep("journal", "ship", str(journal), code=2)
    writer.close()
    assert receiver.spans == []


def test_a_bad_otel_variable_is_named(sidestep: Sidestep, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_journal(journal, 1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    assert "OTEL_EXPORTER_OTLP_PROTOCOL: " in sidestep("journal", "ship", str(journal), code=2)
