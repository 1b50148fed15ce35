"""What commands print: tables for people, JSON for programs, YAML that `sidestep apply` takes back.

JSON is the protobuf JSON mapping with every field of the message, also empty ones, so its keys never depend on the data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import yaml
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sidestep.v1 import admin_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.client import Client, collection_of
from controlplane.cli.manifests import dump
from engine.durations import format_duration
from engine.names import Collection

# Off a terminal nothing is cut or wrapped, so that `grep` finds what a table shows.
_WIDE = 400
_COLOURS = {"ACTIVE": "green", "DISABLED": "red", "REVOKED": "red", "QUARANTINED": "yellow", "SUSPENDED": "yellow"}
_COLOURS |= {"REOPENING": "yellow"}
_COLOURS |= {"REQUESTED": "yellow", "APPROVED": "yellow", "LAPSED": "red", "EXPIRED": "red", "REJECTED": "red"}
_COLOURS |= {"LOW": "green", "ELEVATED": "yellow", "HIGH": "red", "CRITICAL": "bold red"}

Columns = Sequence[tuple[str, Callable[[Any], "str | Text"]]]


def console(*, stderr: bool = False) -> Console:
    """A console on the stream as it is now; wide off a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False, soft_wrap=False)


def show_records(client: Client, collection: Collection, records: Iterable[Any]) -> None:
    """Prints a collection."""
    if client.output == "json":
        print_json([as_dict(record) for record in records])
    elif client.output == "yaml":
        click.echo("---\n".join(dump(collection, record) for record in records), nl=False)
    else:
        print_table(_COLUMNS[collection], records)


def show_record(client: Client, record: Any) -> None:
    """Prints one record, in full."""
    if client.output == "json":
        print_json(as_dict(record))
    elif client.output == "yaml":
        click.echo(dump(collection_of(record), record), nl=False)
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for field in record.DESCRIPTOR.fields:
            value = getattr(record, field.name)
            empty = not record.HasField(field.name) if field.has_presence else _is_empty(value)
            if not empty and field.name not in ("secret", "document"):
                shown = _value(record, field)
                table.add_row(field.name, Text(shown) if isinstance(shown, str) else shown)
        console().print(table)


def show_put(client: Client, response: admin_pb2.PutResourceResponse) -> None:
    """Prints what a put did. Warnings go to stderr in every format."""
    record = getattr(response.resource, response.resource.WhichOneof("resource") or "")
    for warning in response.warnings:
        click.echo(f"warning: {warning}", err=True)
    show_result(
        client, response, f"{record.name} {'written' if response.changed else 'unchanged'} {at(response.revision)}"
    )


def show_result(client: Client, message: Message, sentence: str) -> None:
    """Prints a response: as data, or as a sentence for people."""
    if client.output == "table":
        click.echo(sentence)
    else:
        print_data(client, as_dict(message))


def print_data(client: Client, value: Any) -> None:
    """Prints plain values as JSON or YAML."""
    if client.output == "yaml":
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120), nl=False)
    else:
        print_json(value)


def print_json(value: Any) -> None:
    """Prints JSON, indented, in the order given."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Columns, rows: Iterable[Any]) -> None:
    """Prints rows under headings."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, _ in columns:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # Plain strings would be read as rich markup.
        table.add_row(*(Text(text) if isinstance(text := cell(row), str) else text for _, cell in columns))
    console().print(table)


def as_dict(message: Message) -> dict[str, Any]:
    """The protobuf JSON mapping, all fields, without secrets."""
    value: dict[str, Any] = MessageToDict(message, always_print_fields_with_no_presence=True)
    _drop_secrets(value, message)
    return value


def at(revision: pb.Revision) -> str:
    """A revision as `min_revision` needs it, for people: `at revision 1:42` (epoch:revision)."""
    return f"at revision {revision.epoch}:{revision.revision}"


def coloured(word: str) -> Text:
    """A state or level in its colour."""
    return Text(word, style=_COLOURS.get(word, ""))


def state_name(state: int) -> str:
    """The state of a grant, for people."""
    return str(_enum(pb.GrantState, state))


def instant(value: Timestamp) -> str:
    """A time for people; `-` if unset."""
    if value == Timestamp():
        return "-"
    try:
        return datetime.fromtimestamp(value.seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{value.seconds} s"


def span(value: Duration) -> str:
    """A duration for people."""
    return format_duration(value.seconds + value.nanos / 1e9)


def _is_empty(value: Any) -> bool:
    """Whether a field holds nothing: text, bytes, list or mapping. A number or enum always says something."""
    return hasattr(value, "__len__") and len(value) == 0


def _drop_secrets(value: dict[str, Any], message: Message) -> None:
    if isinstance(message, pb.Key):
        value.pop("secret", None)
    elif isinstance(message, admin_pb2.PutResourceResponse):
        value["resource"].get("key", {}).pop("secret", None)


def _enum(enum: Any, number: int) -> Text:
    """`GRANT_STATE_ACTIVE` as `ACTIVE`."""
    try:
        name: str = enum.Name(number)
    except ValueError:
        return Text(str(number))
    return coloured(name.removeprefix(enum.Name(0).removesuffix("UNSPECIFIED")))


def _value(record: Any, field: Any) -> str | Text:
    value = getattr(record, field.name)
    if isinstance(value, Timestamp):
        return instant(value)
    if isinstance(value, Duration):
        return span(value)
    if field.enum_type is not None:
        name = field.enum_type.values_by_number.get(value)
        prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return coloured(name.name.removeprefix(prefix)) if name else str(value)
    if field.name == "source":
        return Text(str(value))
    if field.message_type is not None or field.is_repeated:
        # The one field's JSON mapping, as short YAML.
        plain = MessageToDict(record).get(field.json_name)
        if isinstance(plain, list) and all(isinstance(item, str) for item in plain):
            return Text(", ".join(plain))
        return Text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100).rstrip())
    return Text(str(value))


def _id(record: Any) -> str:
    return str(record.name).rpartition("/")[2]


def _scope(grant: pb.Grant) -> str:
    kind = grant.WhichOneof("scope")
    return f"{kind}:{getattr(grant, kind)}" if kind else "-"


def requirement(value: pb.Requirement) -> str:
    """What is demanded or waived, for people."""
    return f"{value.acr or '-'} within {span(value.max_age)}"


_COLUMNS: dict[Collection, Columns] = {
    Collection.POLICIES: [
        ("POLICY", _id),
        ("VERSION", lambda policy: str(policy.version)),
        ("UPDATED", lambda policy: instant(policy.update_time)),
    ],
    Collection.GRANTS: [
        ("GRANT", _id),
        ("STATE", lambda grant: _enum(pb.GrantState, grant.state)),
        ("SCOPE", _scope),
        ("ACTIONS", lambda grant: " ".join(grant.actions)),
        ("CEILING", lambda grant: requirement(grant.ceiling)),
        ("STARTS", lambda grant: instant(grant.start_time)),
        ("EXPIRES", lambda grant: instant(grant.expire_time)),
        ("CLASS", lambda grant: grant.grant_class or "-"),
        ("REVIEW", lambda grant: instant(grant.review_time)),
    ],
    Collection.SUBJECTS: [
        ("SUBJECT", _id),
        ("STATE", lambda subject: _enum(pb.SubjectState, subject.state)),
        ("ROLES", lambda subject: " ".join(subject.roles) or "-"),
        ("METHODS", lambda subject: " ".join(subject.methods) or "-"),
        ("RECOVERED", lambda subject: instant(subject.recover_time)),
    ],
    Collection.DEVICE_STATES: [
        ("DEVICE", _id),
        ("SUBJECT", lambda state: state.subject),
        ("TRUST", lambda state: _enum(pb.DeviceTrust, state.trust)),
        ("REASON", lambda state: state.reason or "-"),
        ("UPDATED", lambda state: instant(state.update_time)),
    ],
    Collection.REVOKED_SESSIONS: [
        ("SESSION", _id),
        ("SUBJECT", lambda session: session.subject or "-"),
        ("REVOKED", lambda session: instant(session.revoke_time)),
        ("KEPT UNTIL", lambda session: instant(session.expire_time)),
        ("REASON", lambda session: session.reason or "-"),
    ],
    Collection.KEYS: [
        ("KEY", _id),
        ("KIND", lambda key: _enum(pb.KeyKind, key.kind)),
        ("ISSUER", lambda key: key.issuer or "-"),
        ("STARTS", lambda key: instant(key.start_time)),
        ("EXPIRES", lambda key: instant(key.expire_time)),
    ],
    Collection.POSTURES: [
        ("LEVEL", lambda posture: _enum(pb.PostureLevel, posture.level)),
        ("EXEMPTIONS", lambda posture: "off" if posture.exemptions_off else "on"),
        ("REASON", lambda posture: posture.reason or "-"),
        ("UPDATED", lambda posture: instant(posture.update_time)),
    ],
    Collection.GRANT_CLASSES: [
        ("CLASS", _id),
        ("STATE", lambda state: _enum(pb.ClassState, state.state)),
        ("BY", lambda state: "a person" if state.held else "breaker" if state.trips else "-"),
        ("SINCE", lambda state: instant(state.since_time)),
        ("SPOT CHECKS", lambda state: f"{state.spot_check_rate:.3g}" if state.spot_check_rate else "-"),
        ("REASON", lambda state: state.reason or "-"),
    ],
    Collection.DEVICES: [
        ("DEVICE", _id),
        ("SUBJECT", lambda device: device.subject),
        ("BOUND", lambda device: "yes" if device.jkt else "no"),
        ("COMPONENTS", lambda device: str(len(device.components) + len(device.versions))),
        ("VALIDATED", lambda device: instant(device.validate_time)),
    ],
    Collection.SIGNALS: [
        ("KIND", lambda signal: _enum(pb.SignalKind, signal.kind)),
        ("VALUE", lambda signal: signal.value),
        ("SOURCE", lambda signal: signal.source),
        ("SCORE", lambda signal: str(signal.score)),
        ("CONFIDENCE", lambda signal: str(signal.confidence) if signal.HasField("confidence") else "100"),
        ("EXPIRES", lambda signal: instant(signal.expire_time)),
    ],
}
