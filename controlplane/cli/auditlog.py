"""`sidestep audit`: list, verify, export. Who changed what, and proof that nothing of it was changed since."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

import click
from google.protobuf.message import DecodeError
from rich.text import Text
from sidestep.v1 import audit_pb2, audit_pb2_grpc
from sidestep.v1 import resources_pb2 as pb

from controlplane.audit import HASH_BYTES, Finding, verify
from controlplane.cli.client import Client
from controlplane.cli.failures import FINDINGS, Failure
from controlplane.cli.output import as_dict, instant, print_data, print_table
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import label

_SHOWN_FINDINGS = 100
# A line of an export at its longest, with room: texts are bounded, and stand there twice.
_MAX_LINE = 1 << 20


@click.group(cls=Family)
def audit() -> None:
    """The audit log: every change to the tenant's records, and every refused attempt."""


@audit.command("list")
@click.option("--actor", default="", help="Only of this actor.")
@click.option("--action", default="", help="Only this action (`put`), or all that begin with it (`grant.`).")
@click.option("--name", "name_prefix", default="", help="Only of names that begin with this (`tenants/acme/grants/`).")
@click.option("--refused", is_flag=True, help="Only refused attempts.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
@click.option("--oldest-first", is_flag=True, help="Begin with the oldest.  [default: with the newest]")
@pass_client
def list_entries(
    client: Client, actor: str, action: str, name_prefix: str, refused: bool, limit: int, oldest_first: bool
) -> None:
    """List entries."""
    request = audit_pb2.ListAuditEntriesRequest(
        parent=client.parent,
        newest_first=not oldest_first,
        actor=actor,
        action=action,
        name_prefix=name_prefix,
        outcome=audit_pb2.AUDIT_OUTCOME_REFUSED if refused else audit_pb2.AUDIT_OUTCOME_UNSPECIFIED,
    )
    records = list(_list(client, request, limit))
    if client.output == "table":
        print_table(_COLUMNS, [_entry(record) for record in records])
    else:
        print_data(client, [_as_dict(record) for record in records])


@audit.command("export")
@click.option("--file", "-f", type=click.File("w", encoding="utf-8"), default="-", help="Where to.  [default: stdout]")
@pass_client
def export(client: Client, file: TextIO) -> None:
    """Write the whole log as JSON lines, for `sidestep audit verify FILE`.

    The first line says where the chain stands; each line after it is an entry: readable, as the bytes that were hashed, and its
    hash.
    """
    for message in _export(client):
        if message.HasField("head"):
            head = {"number": message.head.number, "hash": message.head.hash.hex()}
            _write_line(file, {"tenant": client.tenant, "head": head})
        for record in message.records:
            _write_line(file, _as_dict(record))


@audit.command("verify")
@click.argument("file", required=False, type=click.File(encoding="utf-8"))
@click.option("--head", metavar="NUMBER:HASH", help="Where the chain stood, as told by an earlier verification.")
@pass_client
def verify_log(client: Client, file: TextIO | None, head: str | None) -> int:
    """Check that the log is whole: of the control plane, or in an exported FILE (`-`: stdin).

    Exits with 13 if an entry was edited, replaced, repeated or is missing, and names it. Someone who can write to the database
    can also make the whole chain anew: that is found by --head, if you keep what this prints somewhere else.
    """
    given = _parse_head(head) if head is not None else None
    findings: list[Finding] = []
    if file is None:
        tenant, answers = client.tenant, _export(client)
        told = next(answers).head
        records: Iterator[audit_pb2.AuditRecord] = (record for answer in answers for record in answer.records)
    else:
        tenant, told = _read_first(file)
        records = _read_records(file, findings)
    seen = audit_pb2.AuditHead()
    findings += verify(tenant, _counted(records, seen), told, given)
    if seen.number > told.number:
        findings.append(
            Finding(told.number + 1, "is one the head that came along knows nothing of: the head was changed")
        )
    findings.sort(key=lambda finding: finding.number)
    _show_verdict(client, tenant, seen, findings)
    return FINDINGS if findings else 0


def _show_verdict(client: Client, tenant: str, seen: audit_pb2.AuditHead, findings: list[Finding]) -> None:
    if client.output != "table":
        head = {"number": seen.number, "hash": seen.hash.hex()}
        shown = [finding._asdict() for finding in findings]
        print_data(client, {"tenant": tenant, "entries": seen.number, "head": head, "findings": shown})
        return
    for finding in findings[:_SHOWN_FINDINGS]:
        click.echo(f"entry {finding.number} {finding.problem}")
    if not findings:
        click.echo(f"{tenant}: {seen.number} entries, whole; head {seen.number}:{seen.hash.hex()}")
    else:
        click.echo(f"{tenant}: {seen.number} entries, {len(findings)} findings")


def _counted(records: Iterable[audit_pb2.AuditRecord], seen: audit_pb2.AuditHead) -> Iterator[audit_pb2.AuditRecord]:
    """The same records; `seen` has how many they were, and the hash of the last one."""
    for record in records:
        seen.number += 1
        seen.hash = record.hash
        yield record


def _list(client: Client, request: audit_pb2.ListAuditEntriesRequest, limit: int) -> Iterator[audit_pb2.AuditRecord]:
    while limit > 0:
        request.page_size = min(limit, 1000)
        response = client.call("ListAuditEntries", request, service=audit_pb2_grpc.AuditServiceStub)
        yield from response.records
        limit -= len(response.records)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def _export(client: Client) -> Iterator[audit_pb2.ExportAuditResponse]:
    request = audit_pb2.ExportAuditRequest(parent=client.parent)
    return client.stream("ExportAudit", request, service=audit_pb2_grpc.AuditServiceStub)


def _parse_head(text: str) -> audit_pb2.AuditHead:
    number, _, digest = text.partition(":")
    if not number.isascii() or not number.isdigit() or len(digest) != 2 * HASH_BYTES:
        raise Failure("--head: must be NUMBER:HASH as `sidestep audit verify` prints it")
    try:
        return audit_pb2.AuditHead(number=int(number), hash=bytes.fromhex(digest))
    except ValueError:
        raise Failure("--head: must be NUMBER:HASH as `sidestep audit verify` prints it") from None


# Exported files


def _write_line(file: TextIO, value: Any) -> None:
    file.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def _read_first(file: TextIO) -> tuple[str, audit_pb2.AuditHead]:
    """The tenant and the head in the first line. Raises Failure: without them there is nothing to verify."""
    try:
        value = json.loads(file.readline(_MAX_LINE))
        head = value["head"]
        return str(value["tenant"]), audit_pb2.AuditHead(number=head["number"], hash=bytes.fromhex(head["hash"]))
    except (ValueError, TypeError, KeyError):
        raise Failure(f"{label(file)}: the first line is not that of an export") from None


def _read_records(file: TextIO, findings: list[Finding]) -> Iterator[audit_pb2.AuditRecord]:
    """The records of the other lines. A line that cannot be read is a record without content; what is wrong with the readable
    part of a line becomes a finding.
    """
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        try:
            value = json.loads(line)
            record = audit_pb2.AuditRecord(
                entry=base64.b64decode(value["bytes"], validate=True),
                previous_hash=bytes.fromhex(value["previousHash"]),
                hash=bytes.fromhex(value["hash"]),
            )
            readable = value["entry"]
        except (ValueError, TypeError, KeyError, binascii.Error):
            yield audit_pb2.AuditRecord(entry=_NO_ENTRY)
            continue
        if readable != _as_dict(record)["entry"]:
            findings.append(Finding(number, "was edited: its readable part does not say what its bytes say"))
        yield record


def _as_dict(record: audit_pb2.AuditRecord) -> dict[str, Any]:
    entry = _entry(record)
    return {
        "entry": as_dict(entry) if entry is not None else None,
        "bytes": base64.b64encode(record.entry).decode(),
        "previousHash": record.previous_hash.hex(),
        "hash": record.hash.hex(),
    }


def _entry(record: audit_pb2.AuditRecord) -> audit_pb2.AuditEntry | None:
    """What a record says; None: somebody damaged it."""
    try:
        return audit_pb2.AuditEntry.FromString(record.entry)
    except DecodeError:
        return None


def _cell(show: Callable[[audit_pb2.AuditEntry], str | Text]) -> Callable[[audit_pb2.AuditEntry | None], str | Text]:
    return lambda entry: Text("damaged", style="bold red") if entry is None else show(entry)


def _actor(entry: audit_pb2.AuditEntry) -> str:
    return entry.actor + ("" if entry.evidence == pb.EVIDENCE_VERIFIED else " (asserted)")


def _outcome(entry: audit_pb2.AuditEntry) -> str | Text:
    if entry.outcome == audit_pb2.AUDIT_OUTCOME_DONE:
        return "done"
    return Text("refused" + (f" (+{entry.repeats})" if entry.repeats else ""), style="yellow")


def _why(entry: audit_pb2.AuditEntry) -> str:
    return " ".join(part for part in (entry.reason, f"[{entry.ticket}]" if entry.ticket else "") if part) or "-"


# A field number of 0 stands in no message.
_NO_ENTRY = b"\0"
_COLUMNS = [
    ("NUMBER", _cell(lambda entry: str(entry.number))),
    ("TIME", _cell(lambda entry: instant(entry.time))),
    ("ACTOR", _cell(_actor)),
    ("ACTION", _cell(lambda entry: entry.action)),
    ("NAME", _cell(lambda entry: entry.name)),
    ("OUTCOME", _cell(_outcome)),
    ("DETAIL", _cell(lambda entry: entry.detail or "-")),
    ("REASON", _cell(_why)),
]
