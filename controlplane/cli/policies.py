"""`sidestep policy`: put, get, list, delete, check, schema; and, without any server, test and explain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO

import click
from sidestep.v1 import admin_pb2

from controlplane.cli import manifests
from controlplane.cli.changes import Change, put_record
from controlplane.cli.client import Client
from controlplane.cli.common import add_delete, add_list
from controlplane.cli.failures import Fault
from controlplane.cli.manifests import Document, Manifest
from controlplane.cli.output import print_json, show_record
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import label
from engine.names import Collection
from engine.policy import PolicyError, json_schema, parse_policy


@click.group(cls=Family)
def policy() -> None:
    """Policies: what actions demand, and when a grant may waive it."""


add_list(policy, Collection.POLICIES, "policies")
add_delete(policy, Collection.POLICIES, "policy")


@policy.command(cls=Change)
@click.argument("files", metavar="FILE...", type=click.File(encoding="utf-8"), nargs=-1, required=True)
@pass_client
def put(client: Client, files: Iterable[TextIO]) -> None:
    """Create or replace the policies in FILE... (`-`: stdin). All are checked before the first is written."""
    checked = [item for file in files for item in manifests.read(file, client.tenant_option, "Policy")]
    for manifest in checked:
        check_on_server(client, manifest)
    for manifest in checked:
        put_record(client, manifest.record)


@policy.command()
@click.argument("name")
@click.option("--source", is_flag=True, help="Only the YAML as its author wrote it.")
@pass_client
def get(client: Client, name: str, source: bool) -> None:
    """Show one policy."""
    record = client.get(Collection.POLICIES, name)
    if source:
        click.echo(manifests.dump(Collection.POLICIES, record), nl=False)
    else:
        show_record(client, record)


@policy.command()
@click.argument("files", metavar="FILE...", type=click.File(encoding="utf-8"), nargs=-1, required=True)
@click.option("--local", is_flag=True, help="Check with this program instead of asking the control plane.")
@pass_client
def check(client: Client, files: Iterable[TextIO], local: bool) -> None:
    """Check policies without storing them: every problem with line and column."""
    for file in files:
        for document in manifests.split(file):
            if local:
                warnings = check_locally(document)
            else:
                warnings = check_on_server(client, manifests.read_document(document, client.tenant_option, "Policy"))
            for warning in warnings:
                click.echo(f"warning: {document.file}: {warning}", err=True)
        click.echo(f"{label(file)}: ok")


@policy.command()
def schema() -> None:
    """Print the JSON Schema of policies, for editors."""
    print_json(json_schema())


def check_on_server(client: Client, manifest: Manifest) -> list[str]:
    """Has the control plane check a policy. Returns warnings; raises FileFailure with every problem."""
    tenant = manifest.record.name.split("/")[1]
    request = admin_pb2.CheckPolicyRequest(parent=f"tenants/{tenant}", source=manifest.record.source)
    response: admin_pb2.CheckPolicyResponse = client.call("CheckPolicy", request)
    _raise(manifest.document, response.problems)
    return list(response.warnings)


def check_locally(document: Document) -> list[str]:
    """Checks a policy here. Returns warnings; raises FileFailure with every problem."""
    try:
        return list(parse_policy(document.text).warnings)
    except PolicyError as error:
        _raise(document, error.problems)
        raise


def _raise(document: Document, problems: Iterable[Any]) -> None:
    faults = [Fault(problem.line, problem.column, problem.path, problem.message) for problem in problems]
    if faults:
        raise document.failure(faults)
