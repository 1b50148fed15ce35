"""Records are read back from wherever they are kept, the same from each, and what is not whole is named."""

from __future__ import annotations

import copy
import gzip
import io
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sidecar.journal import exported
from sidecar.journal.chain import genesis
from sidecar.journal.origin import Coverage, SourceError, SourceRecord
from sidecar.journal.quarantine import Quarantine, Quarantined
from sidecar.journal.record import encode_record
from sidecar.journal.resource import save_resource
from sidecar.journal.segment import FRAME, HEADER, SegmentWriter, list_segments
from sidecar.journal.source import coverage, folder_sidecars, journal_folders, read_sources
from tests.fakes.journal import read_entries
from tests.fakes.otlp_json import export_request, otlp_json, write_lines
from tests.fakes.records import make_batch, make_record, make_unrecorded

MIB = 1 << 20


def make_journal(folder: Path, sidecar: str = "pod-1", count: int = 6) -> SegmentWriter:
    """A journal folder with records of all kinds in several files. The writer is closed."""
    save_resource(folder, {"service.name": "sidestep", "service.instance.id": sidecar})
    writer = SegmentWriter(folder, "w0", 64 * MIB, segment_bytes=3000)
    for _ in range(count):
        writer.append([encode_record(make_record(traceparent=""))])
    writer.append([encode_record(record) for record in (*make_batch(), make_unrecorded())])
    writer.close()
    return writer


def export_of(folder: Path) -> ExportTraceServiceRequest:
    return export_request((name.chain, entry) for name, entry in read_entries(folder))


def essence(records: list[SourceRecord]) -> list[tuple[str, str, int, bytes, bytes]]:
    return [(r.sidecar, r.chain, r.sequence, r.hash, r.payload) for r in records]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    make_journal(tmp_path / "data" / "journal")
    return tmp_path / "data" / "journal"


def test_a_folder_gives_what_was_written(journal: Path) -> None:
    records = list(read_sources([journal]))
    written = read_entries(journal)
    assert essence(records) == [("pod-1", n.chain, e.sequence, e.hash, e.payload) for n, e in written]
    assert [record.sequence for record in records] == list(range(10))
    firsts = {str(journal / str(name)): None for name, _ in written}
    assert len(firsts) > 2
    assert {record.origin for record in records} == set(firsts)
    hashes = [genesis(records[0].chain), *(record.hash for record in records)]
    for record in records:
        assert record.previous == (hashes[record.sequence] if firsts.pop(record.origin, 1) is None else b"")
        assert not record.altered
        assert not record.quarantined


def test_data_directories_and_spools_are_found_by_what_is_in_them(journal: Path, tmp_path: Path) -> None:
    data = journal.parent
    (data / "gen-1").mkdir()
    (data / "CURRENT").write_text("gen-1")
    assert journal_folders(data) == [journal]
    spool = tmp_path / "spool"
    for name in ("100-1", "200-1"):
        shutil.copytree(journal, spool / "pod-1" / name)
    shutil.copytree(journal, spool / "pod-1" / ".300-1.part")
    make_journal(spool / "pod-2" / "100-7", "pod-2")
    assert [str(folder.relative_to(spool)) for folder in journal_folders(spool)] == [
        "pod-1/100-1",
        "pod-1/200-1",
        "pod-2/100-7",
    ]
    assert len(list(read_sources([data]))) == 10
    assert len(list(read_sources([spool]))) == 30
    assert folder_sidecars([data, spool, "-"]) == {"pod-1", "pod-2"}
    for record in read_sources([spool]):
        assert record.sidecar in record.origin


def test_a_folder_that_does_not_say_whose_it_is_is_nobodys(journal: Path) -> None:
    for content in (None, b"{", b'{"service.name": "x"}'):
        (journal / "resource.json").unlink()
        if content is not None:
            (journal / "resource.json").write_bytes(content)
        assert {record.sidecar for record in read_sources([journal])} == {""}
        (journal / "resource.json").touch()


def test_paths_that_are_no_source_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty: there is no journal in this folder"):
        list(read_sources([tmp_path / "empty"]))
    with pytest.raises(SourceError, match=r"missing: No such file"):
        list(read_sources([tmp_path / "missing"]))


def test_quarantined_records_are_what_they_were(journal: Path) -> None:
    name, entry = read_entries(journal)[3]
    quarantine = Quarantine(journal, MIB)
    quarantine.put([Quarantined(name.chain, entry.sequence, entry.hash, entry.payload)])
    quarantine.close()
    records = list(read_sources([journal]))
    aside = [record for record in records if record.quarantined]
    assert essence(aside) == essence([record for record in records if record.sequence == 3 and record not in aside])
    assert len(records) == 11


@pytest.mark.parametrize("payload", [b"x", msgspec.msgpack.encode(Quarantined("w0-0", 1, b"short", b"x"))])
def test_a_quarantine_that_cannot_be_read_is_named(journal: Path, payload: bytes) -> None:
    writer = SegmentWriter(journal, "q", MIB)
    writer.append([payload])
    writer.close()
    with pytest.raises(SourceError, match="number 0 of the quarantine"):
        list(read_sources([journal]))
    told: list[SourceError] = []
    assert len(list(read_sources([journal], told.append))) == 10
    assert len(told) == 1


def test_damage_in_a_folder_is_named_and_passed_over_if_wished(journal: Path) -> None:
    first, second, *_ = [journal / str(name) for name in list_segments(journal)]
    in_first = [e.sequence for n, e in read_entries(journal) if str(n) == first.name]
    in_second = [e.sequence for n, e in read_entries(journal) if str(n) == second.name]
    assert len(in_second) > 1
    content = bytearray(first.read_bytes())
    content[20] ^= 1
    first.write_bytes(content)
    content = bytearray(second.read_bytes())
    content[HEADER.size + FRAME.size] ^= 1
    second.write_bytes(content)
    with pytest.raises(SourceError, match=f"{first.name}: its header is damaged"):
        list(read_sources([journal]))
    told: list[SourceError] = []
    found = list(read_sources([journal], told.append))
    assert [record.sequence for record in found] == list(range(in_second[0] + 1, 10))
    assert len(in_first) + 1 + len(found) == 10
    assert [str(error).partition(": ")[2] for error in told] == [
        "its header is damaged",
        f"1 damaged records before number {in_second[1]}",
    ]
    assert found[0].previous == b"", "the header tells what was before the damaged one"


def test_a_torn_tail_is_no_damage(journal: Path) -> None:
    path = journal / str(list_segments(journal)[-1])
    path.write_bytes(path.read_bytes()[:-1])
    assert len(list(read_sources([journal]))) == 9


# Exported spans


def test_exported_spans_give_the_records_back(journal: Path, tmp_path: Path) -> None:
    request = export_of(journal)
    write_lines(tmp_path / "spans.json", [request, request])
    (tmp_path / "one.json").write_text(json.dumps(otlp_json(request), indent=2))
    (tmp_path / "spans.json.gz").write_bytes(gzip.compress((tmp_path / "spans.json").read_bytes()))
    due = essence(list(read_sources([journal])))
    for name, times in (("spans.json", 2), ("one.json", 1), ("spans.json.gz", 2)):
        found = list(read_sources([tmp_path / name]))
        assert essence(found) == due * times, name
        assert {record.altered for record in found} == {()}
        assert found[-1].origin == f"{tmp_path / name}:{times}"


def test_standard_input_is_a_source(journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "spans.json", [export_of(journal)])
    plain = (tmp_path / "spans.json").read_bytes()
    for content in (plain, gzip.compress(plain)):
        stdin = io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr("sys.stdin", stdin)
        found = list(read_sources(["-"]))
        assert len(found) == 10
        assert found[0].origin == "stdin:1"
        assert not stdin.buffer.closed


def test_what_sources_hold_between_them(journal: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "spans.json", [])
    assert coverage([journal]) is Coverage.UNDELIVERED
    assert coverage([tmp_path / "spans.json"]) is coverage(["-"]) is Coverage.DELIVERED
    assert coverage([journal, tmp_path / "spans.json"]) is Coverage.EVERYTHING


def test_spans_of_others_are_passed_over(journal: Path, tmp_path: Path) -> None:
    document = otlp_json(export_of(journal))
    foreign = {
        "traceId": "0" * 31 + "1",
        "spanId": "0" * 15 + "1",
        "name": "sidestep.v1.DecisionService/Evaluate",
        "kind": 3,
        "attributes": [{"key": "a", "value": {"kvlistValue": {"values": []}}}, {"key": "b", "value": {}}],
        "events": [{"name": "x"}],
    }
    document["resourceSpans"][0]["scopeSpans"].insert(0, {"scope": {"name": "grpc"}, "spans": [foreign]})
    document["resourceSpans"].append({"scopeSpans": [{"spans": [foreign]}]})
    (tmp_path / "spans.json").write_text(json.dumps(document) + "\n\n" + '{"resourceSpans":[]}\n')
    assert len(list(read_sources([tmp_path / "spans.json"]))) == 10


def test_other_encodings_of_the_same_values_are_the_same(journal: Path, tmp_path: Path) -> None:
    def respell(node: Any) -> Any:
        if isinstance(node, list):
            return [respell(item) for item in node]
        if isinstance(node, dict):
            return {key: respelled(key, value) for key, value in node.items()}
        return node

    def respelled(key: str, value: Any) -> Any:
        if key == "intValue" or key.endswith("UnixNano"):
            return int(value)
        if key.endswith("Id"):
            return value.upper()
        if key == "bytesValue":
            return value.rstrip("=").replace("+", "-").replace("/", "_")
        return respell(value)

    document = respell(otlp_json(export_of(journal)))
    span = document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span["attributes"].append({"key": "k8s.cluster.name", "value": {"stringValue": "added on the way"}})
    (tmp_path / "spans.json").write_text(json.dumps(document))
    found = list(read_sources([tmp_path / "spans.json"]))
    assert essence(found) == essence(list(read_sources([journal])))
    assert {record.altered for record in found} == {()}


def set_value(key: str, value: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    def change(span: dict[str, Any]) -> None:
        (attribute,) = [each for each in span["attributes"] if each["key"] == key]
        attribute["value"] = value

    return change


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    def change(span: dict[str, Any]) -> None:
        span["attributes"] = [each for each in span["attributes"] if each["key"] != key]

    return change


def add(key: str) -> Callable[[dict[str, Any]], None]:
    def change(span: dict[str, Any]) -> None:
        span["attributes"].append({"key": key, "value": {"stringValue": "x"}})

    return change


@pytest.mark.parametrize(
    ("change", "altered"),
    [
        (set_value("sidestep.outcome", {"stringValue": "DENY"}), "sidestep.outcome"),
        (set_value("sidestep.revision", {"intValue": "43"}), "sidestep.revision"),
        (set_value("sidestep.revision", {"stringValue": "42"}), "sidestep.revision"),
        (set_value("sidestep.revision", {"intValue": "many"}), "sidestep.revision"),
        (set_value("sidestep.data_age_s", {"doubleValue": 1.25}), "sidestep.data_age_s"),
        (set_value("sidestep.data_age_s", {"doubleValue": "old"}), "sidestep.data_age_s"),
        (set_value("sidestep.factor.identity.passed", {"boolValue": False}), "sidestep.factor.identity.passed"),
        (set_value("sidestep.reasons", {"arrayValue": {}}), "sidestep.reasons"),
        (set_value("sidestep.reasons", {"stringValue": "x"}), "sidestep.reasons"),
        (set_value("user.hash", {"stringValue": "other"}), "user.hash"),
        (drop("sidestep.grant.id"), "sidestep.grant.id"),
        (drop("client.address"), "client.address"),
        (add("sidestep.outcome"), "sidestep.outcome"),
        (add("sidestep.something"), "sidestep.something"),
        (add("user.id"), "user.id"),
        (lambda span: span.update(name="other"), "name"),
        (lambda span: span.update(kind=3), "kind"),
        (lambda span: span.update(traceId="0" * 32), "trace_id"),
        (lambda span: span.update(spanId="0" * 16), "span_id"),
        (lambda span: span.update(parentSpanId="0" * 16), "parent_span_id"),
        (lambda span: span.update(startTimeUnixNano="1"), "start_time"),
        (lambda span: span.update(endTimeUnixNano="1"), "end_time"),
        (lambda span: span.update(status={"code": 1}), "status"),
        # Another place in the chain is for verification to find: the span says of itself what it says.
        (set_value("sidestep.journal.seq", {"intValue": "77"}), None),
        (set_value("sidestep.record", {"bytesValue": "AAAA"}), "sidestep.record"),
    ],
)
def test_what_was_altered_in_a_span_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], altered: str | None
) -> None:
    make_journal(tmp_path / "journal")
    document = otlp_json(export_of(tmp_path / "journal"))
    change(document["resourceSpans"][0]["scopeSpans"][0]["spans"][1])
    (tmp_path / "spans.json").write_text(json.dumps(document))
    found = list(read_sources([tmp_path / "spans.json"]))
    assert len(found) == 10
    assert found[1].altered == ((altered,) if altered else ())
    assert not any(record.altered for record in (found[0], *found[2:]))


def test_an_altered_record_shows_in_the_attributes_it_no_longer_agrees_with(journal: Path, tmp_path: Path) -> None:
    request = export_of(journal)
    span = request.resource_spans[0].scope_spans[0].spans[0]
    for attribute in span.attributes:
        if attribute.key == "sidestep.record":
            attribute.value.bytes_value = attribute.value.bytes_value.replace(b"nist-aal1", b"nist-aal3")
    write_lines(tmp_path / "spans.json", [request])
    assert next(read_sources([tmp_path / "spans.json"])).altered == ("sidestep.achieved_acr",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop("sidestep.record"), "has no sidestep.record"),
        (drop("sidestep.journal.chain"), "has no sidestep.journal.chain"),
        (lambda span: span.update(attributes=[]), "has no sidestep.journal.chain, "),
        (set_value("sidestep.record", {"bytesValue": "?"}), "not sound"),
        (set_value("sidestep.record", {"stringValue": "AAAA"}), "not sound"),
        (set_value("sidestep.journal.hash", {"bytesValue": "AAAA"}), "not 32 bytes"),
        (set_value("sidestep.journal.seq", {"intValue": "-1"}), "not sound"),
        (set_value("sidestep.journal.seq", {"intValue": str(1 << 63)}), "not sound"),
        (set_value("sidestep.journal.chain", {"stringValue": ""}), "not sound"),
    ],
)
def test_a_span_of_ours_that_is_not_whole_is_an_error_with_its_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    make_journal(tmp_path / "journal")
    whole = otlp_json(export_of(tmp_path / "journal"))
    broken = copy.deepcopy(whole)
    change(broken["resourceSpans"][0]["scopeSpans"][0]["spans"][1])
    path = tmp_path / "spans.json"
    path.write_text("".join(json.dumps(document) + "\n" for document in (whole, broken)))
    with pytest.raises(SourceError, match=rf"spans.json:2: span .*{says}"):
        list(read_sources([path]))
    told: list[SourceError] = []
    assert len(list(read_sources([path], told.append))) == 19
    assert len(told) == 1


@pytest.mark.parametrize(
    "broken",
    [b"not json", b'{"resourceSpans":[{"scope', b"[]", b"{}", b'{"resourceSpans":{}}', b'{"resourceSpans":["\xff"]}'],
)
def test_a_broken_line_is_an_error_that_names_it(journal: Path, tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "spans.json"
    write_lines(path, [export_of(journal)])
    whole = path.read_bytes()
    for before, number in ((whole, 2), (b"", 1)):
        path.write_bytes(before + broken + b"\n" + whole)
        with pytest.raises(SourceError, match=f"spans.json:{number}: "):
            list(read_sources([path]))
        told: list[SourceError] = []
        assert len(list(read_sources([path], told.append))) == 10 * number
        assert len(told) == 1


def test_compressed_files_that_are_cut_or_damaged_are_errors(journal: Path, tmp_path: Path) -> None:
    path = tmp_path / "spans.json"
    write_lines(path, [export_of(journal)] * 3)
    whole = gzip.compress(path.read_bytes())
    for content in (whole[: len(whole) // 2], whole[:50] + b"\0" * 50 + whole[100:], whole[:-8] + b"\0" * 8):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r"spans.json:\d"):
            list(read_sources([path]))


def test_a_line_without_end_is_an_error_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "_MAX_DOCUMENT_BYTES", MIB)
    path = tmp_path / "bomb.json.gz"
    for content in (b" " * (MIB + 1), b"{\n" + b" " * MIB):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(SourceError, match=r"bomb\.json\.gz:1: more than 1 MiB"):
            list(read_sources([path]))


def test_reading_takes_little_memory(tmp_path: Path) -> None:
    make_journal(tmp_path / "journal", count=30)
    path = tmp_path / "spans.json"
    write_lines(path, [export_of(tmp_path / "journal")] * 40)
    assert path.stat().st_size > 4 * MIB
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_sources([path])) == 1360
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()
