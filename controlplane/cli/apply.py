"""`sidestep apply`: puts every resource of some files."""

from __future__ import annotations

from typing import Any, TextIO

import click
from sidestep.v1 import admin_pb2, audit_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli import manifests
from controlplane.cli.changes import Change, propose, proposed
from controlplane.cli.client import Client, wrap
from controlplane.cli.failures import REFUSED, Failure
from controlplane.cli.manifests import Manifest
from controlplane.cli.output import as_dict, at, print_data
from controlplane.cli.policies import check_on_server
from controlplane.cli.program import pass_client
from engine.names import Collection


@click.command(cls=Change)
@click.option(
    "--file", "-f", "files", type=click.File(encoding="utf-8"), multiple=True, required=True, help="File of documents."
)
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@pass_client
def apply(client: Client, files: tuple[TextIO, ...], dry_run: bool) -> None:
    """Create or replace every resource in FILEs (`-`: stdin), in order.

    All are read and checked before the first is written. Nothing is deleted. With --propose each resource that would change
    becomes a proposal of its own.
    """
    read = [item for file in files for item in manifests.read(file, client.tenant_option)]
    brings_key = any(_is_fingerprint_key(manifest.record) for manifest in read)
    checked = [_check(client, manifest, brings_key=brings_key) for manifest in read]
    if not dry_run and not client.propose:
        _refuse_guarded(read, checked)
    results: list[dict[str, Any]] = []
    for manifest, rehearsed in zip(read, checked, strict=True):
        if client.propose and not dry_run and rehearsed.changed:
            results.append(_propose(client, manifest))
            continue
        response = rehearsed if dry_run else _put(client, manifest, manifest.record)
        for warning in response.warnings:
            click.echo(f"warning: {manifest.record.name}: {warning}", err=True)
        word = ("changed" if response.changed else "unchanged") + (" (dry run)" if dry_run else "")
        if response.guarded_by:
            word += f", needs a second person ({', '.join(response.guarded_by)})"
        if client.output == "table":
            click.echo(f"{manifest.record.name} {word} {at(response.revision)}")
        answer = as_dict(response)
        answer.pop("resource")
        results.append({"name": manifest.record.name, **answer})
    if client.output != "table":
        print_data(client, results)


def _refuse_guarded(read: list[Manifest], checked: list[admin_pb2.PutResourceResponse]) -> None:
    """Raises Failure if some of it would be refused, so that none of it is written."""
    for manifest, rehearsed in zip(read, checked, strict=True):
        if rehearsed.guarded_by:
            where = f"{manifest.document.file}:{manifest.document.lines_before + 1}"
            rules = ", ".join(rehearsed.guarded_by)
            raise Failure(f"{where}: {manifest.record.name}: needs a second person ({rules}); use --propose", REFUSED)


def _propose(client: Client, manifest: Manifest) -> dict[str, Any]:
    response = propose(client, audit_pb2.CreateProposalRequest(put=wrap(manifest.record)))
    if client.output == "table":
        click.echo(proposed(response.proposal))
    return {"name": manifest.record.name, "proposal": as_dict(response.proposal)}


def _check(client: Client, manifest: Manifest, *, brings_key: bool) -> admin_pb2.PutResourceResponse:
    """Has the server check a resource. Raises Failure with its place in the file."""
    record = manifest.record
    if manifest.collection is Collection.POLICIES:
        check_on_server(client, manifest)
    if brings_key and isinstance(record, pb.Device):
        # The key its fingerprint is to be hashed with may only be on its way.
        record = pb.Device()
        record.CopyFrom(manifest.record)
        record.ClearField("fingerprint")
    return _put(client, manifest, record, validate_only=True)


def _put(
    client: Client, manifest: Manifest, record: Any, *, validate_only: bool = False
) -> admin_pb2.PutResourceResponse:
    try:
        return client.put(record, validate_only=validate_only)
    except Failure as failure:
        document = manifest.document
        raise Failure(f"{document.file}:{document.lines_before + 1}: {failure.message}", failure.code) from None


def _is_fingerprint_key(record: Any) -> bool:
    return isinstance(record, pb.Key) and record.kind == pb.KEY_KIND_FINGERPRINT
