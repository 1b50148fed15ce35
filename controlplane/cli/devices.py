"""`sidestep device`: register, validate, put, get, list, delete, quarantine, release (or restore), revoke, import."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, TextIO

import click
from google.protobuf import json_format
from sidestep.v1 import admin_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli import manifests
from controlplane.cli.changes import Change, put_record
from controlplane.cli.client import Client
from controlplane.cli.common import add_delete, add_get
from controlplane.cli.failures import NOT_FOUND, REFUSED, Failure, Fault, FileFailure
from controlplane.cli.imports import run_import
from controlplane.cli.output import show_records
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import INSTANT, assignments, exactly_one, label, set_time
from engine.errors import InvalidInputError
from engine.names import Collection, check_id

_SHOWN_FAULTS = 20


@click.group(cls=Family)
def device() -> None:
    """Devices known for a subject, and their standing."""


add_get(device, Collection.DEVICES, "device")
add_delete(device, Collection.DEVICES, "device")


@device.command(cls=Change)
@click.argument("record_id", metavar="[ID]", required=False)
@click.option("--subject", help="The subject it is known for.")
@click.option("--jkt", default="", help="RFC 7638 thumbprint of the key it is bound to.")
@click.option(
    "--fingerprint",
    "fingerprint",
    multiple=True,
    metavar="NAME=VALUE",
    help="Raw component (`os=macOS`, `browser_version=126`), hashed by the control plane; repeat for several.",
)
@click.option("--created", type=INSTANT, help="When it was registered.")
@click.option("--validated", type=INSTANT, help="When a strong authentication last confirmed it.")
@click.option("--file", "-f", type=click.File(encoding="utf-8"), help="Read the device from a document instead.")
@pass_client
def put(
    client: Client,
    record_id: str | None,
    subject: str | None,
    jkt: str,
    fingerprint: tuple[str, ...],
    created: float | None,
    validated: float | None,
    file: TextIO | None,
) -> None:
    """Register a device for a subject, or replace it."""
    exactly_one({"ID": record_id, "--file": file})
    if file is not None:
        put_record(client, manifests.read_one(file, client.tenant_option, "Device").record)
        return
    assert record_id is not None
    record = pb.Device(
        name=client.name(Collection.DEVICES, record_id),
        subject=subject,
        jkt=jkt,
        fingerprint=assignments(fingerprint, "--fingerprint"),
    )
    set_time(record.create_time, created)
    set_time(record.validate_time, validated)
    put_record(client, record)


@device.command(cls=Change)
@click.argument("record_id", metavar="ID")
@click.option("--subject", required=True, help="The subject it is known for.")
@click.option("--jkt", default="", help="RFC 7638 thumbprint of the key it is bound to.")
@click.option(
    "--fingerprint", "fingerprint", multiple=True, metavar="NAME=VALUE", help="Raw component, as in `device put`."
)
@click.option("--validated", is_flag=True, help="It was confirmed just now, too: a grant may be used on it at once.")
@pass_client
def register(
    client: Client, record_id: str, subject: str, jkt: str, fingerprint: tuple[str, ...], validated: bool
) -> None:
    """Register a new device for a known subject, on your own word instead of a login's; --why goes to the audit log.

    What is registered under ID already is left alone. Unless it is --validated, no grant applies on it before a strong login.
    """
    _answer_for(client)
    if not (jkt or fingerprint):
        raise click.UsageError("say what it is known by: --fingerprint or --jkt")
    client.get(Collection.SUBJECTS, subject)
    if client.find(Collection.DEVICES, record_id) is not None:
        raise Failure(
            f"{client.name(Collection.DEVICES, record_id)}: is registered already; `device put` replaces it", REFUSED
        )
    record = pb.Device(
        name=client.name(Collection.DEVICES, record_id),
        subject=subject,
        jkt=jkt,
        fingerprint=assignments(fingerprint, "--fingerprint"),
    )
    now = time.time()
    set_time(record.create_time, now)
    set_time(record.validate_time, now if validated else None)
    put_record(client, record)


@device.command(cls=Change)
@click.argument("record_id", metavar="ID")
@click.option("--at", type=INSTANT, help="When it was confirmed.  [default: now]")
@pass_client
def validate(client: Client, record_id: str, at: float | None) -> None:
    """Confirm a device as a strong login on it does; --why goes to the audit log.

    It no longer is due for revalidation. What voids logins voids this as well, and during the cool-off after a SIM change it
    counts for nothing.
    """
    _answer_for(client)
    record = client.get(Collection.DEVICES, record_id)
    state = client.find(Collection.DEVICE_STATES, record_id)
    if state is not None and state.trust != pb.DEVICE_TRUST_ACTIVE:
        raise Failure(f"{record.name}: is blocked; `device release` it first", REFUSED)
    now = time.time()
    moment = now if at is None else at
    if moment > now:
        raise click.UsageError("--at: lies in the future")
    if record.HasField("validate_time") and moment <= record.validate_time.ToNanoseconds() / 1e9:
        raise Failure(f"{record.name}: was validated later than that", REFUSED)
    set_time(record.validate_time, moment)
    put_record(client, record)


@device.command("list")
@click.option("--prefix", default="", help="Only ids that begin with this.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many.  [default: all]")
@click.option("--states", is_flag=True, help="List standings (quarantined, revoked, restored) instead of devices.")
@pass_client
def list_devices(client: Client, prefix: str, limit: int | None, states: bool) -> None:
    """List devices, ordered by id."""
    collection = Collection.DEVICE_STATES if states else Collection.DEVICES
    show_records(client, collection, client.list(collection, prefix, limit))


def _standing(name: str, trust: pb.DeviceTrust, explanation: str) -> None:
    """Adds the command that gives a device a standing."""

    @device.command(name, cls=Change, help=explanation)
    @click.argument("record_id", metavar="ID")
    @click.option("--subject", help="Subject it is about.  [default: the registered device's]")
    @click.option("--reason", default="", help="Why.")
    @pass_client
    def _set(client: Client, record_id: str, subject: str | None, reason: str) -> None:
        if subject is None:
            # A device may have been deleted while its standing remains.
            known = client.find(Collection.DEVICES, record_id) or client.find(Collection.DEVICE_STATES, record_id)
            if known is None:
                raise Failure(f"{client.name(Collection.DEVICES, record_id)}: not found; name its --subject", NOT_FOUND)
            subject = known.subject
        state = pb.DeviceState(
            name=client.name(Collection.DEVICE_STATES, record_id), subject=subject, trust=trust, reason=reason
        )
        put_record(client, state)


_standing("quarantine", pb.DEVICE_TRUST_QUARANTINED, "Block a device until it is restored.")
_standing("revoke", pb.DEVICE_TRUST_REVOKED, "Block a device for good.")
_standing("restore", pb.DEVICE_TRUST_ACTIVE, "Lift a device's quarantine or revocation.")
_standing("release", pb.DEVICE_TRUST_ACTIVE, "The same as restore.")


def _answer_for(client: Client) -> None:
    """A person vouches for the device, where otherwise a proof would."""
    if not client.why.strip():
        raise click.UsageError("--why: say what you know it by; it is entered in the audit log")


@device.command("import")
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option("--replace/--add", default=False, help="Remove devices that FILE does not name.  [default: --add]")
@click.option("--force", is_flag=True, help="Let --replace shrink the collection by more than 20 %.")
@pass_client
def import_devices(client: Client, file: TextIO, replace: bool, force: bool) -> None:
    """Import devices from FILE: one JSON object a line.

    Each line is a Device in the JSON mapping of protobuf, with its id as `id` (or its full name as `name`). A bad line
    refuses the whole file, since leaving a device out may remove it.
    """
    start = admin_pb2.ImportStart(parent=client.parent, collection="COLLECTION_DEVICES", replace=replace, force=force)
    run_import(client, start, _read(file, client), what="devices")


def _read(file: TextIO, client: Client) -> Iterator[pb.Device]:
    """The devices of a file. Raises FileFailure after the last line if some are bad."""
    faults: list[Fault] = []
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield _parse(line, client)
        except (InvalidInputError, json_format.ParseError, ValueError, Failure) as error:
            faults.append(Fault(number, 0, "", " ".join(str(error).split())))
            if len(faults) == _SHOWN_FAULTS:
                break
    if faults:
        raise FileFailure(label(file), "", faults)


def _parse(line: str, client: Client) -> pb.Device:
    value: Any = json.loads(line)
    if not isinstance(value, dict):
        raise InvalidInputError("line", "not a JSON object")
    record_id = value.pop("id", None)
    if record_id is not None:
        if not isinstance(record_id, str):
            raise InvalidInputError("id", "must be text")
        value["name"] = f"{client.parent}/devices/{check_id(record_id, 'id')}"
    record = pb.Device()
    json_format.ParseDict(value, record)
    if not record.name:
        raise InvalidInputError("id", "is required")
    return record
