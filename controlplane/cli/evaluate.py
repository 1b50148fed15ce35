"""`sidestep evaluate`: asks a running sidecar and shows its decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

import click
import grpc
from sidestep.v1 import decision_pb2, decision_pb2_grpc

from controlplane.cli import manifests
from controlplane.cli.client import Client, open_channel
from controlplane.cli.credentials import authorization
from controlplane.cli.decision import show_decision
from controlplane.cli.failures import DENY, REFUSED, STEP_UP, Failure, from_rpc
from controlplane.cli.output import as_dict, print_data
from controlplane.cli.program import Leaf, pass_client
from controlplane.cli.values import label

DEFAULT_ADDRESS = "127.0.0.1:9191"
_EXIT_CODES = {
    decision_pb2.OUTCOME_ALLOW: 0,
    decision_pb2.OUTCOME_STEP_UP: STEP_UP,
    decision_pb2.OUTCOME_DENY: DENY,
    # As a client reads it.
    decision_pb2.OUTCOME_UNSPECIFIED: STEP_UP,
}


@click.command(cls=Leaf)
@click.option("--file", "-f", type=click.File(encoding="utf-8"), required=True, help="The question (`-`: stdin).")
@click.option("--explain", is_flag=True, help="Ask for every step, value and threshold; needs the diagnose permission.")
@click.option("--address", default=DEFAULT_ADDRESS, show_default=True, help="Sidecar: HOST:PORT or unix:PATH.")
@click.option(
    "--token-file",
    type=click.File(encoding="utf-8"),
    help="File with a caller's token in its first line. Sent to sidecars on this machine only.",
)
@pass_client
def evaluate(client: Client, file: TextIO, explain: bool, address: str, token_file: TextIO | None) -> int:
    """Ask a sidecar whether an action may go on without step-up.

    The question is an EvaluateRequest in YAML (the JSON mapping of protobuf). Exits with 0 for ALLOW, 10 for STEP_UP, 11 for
    DENY.
    """
    documents = manifests.split(file)
    if len(documents) != 1:
        raise Failure(f"{label(file)}: has {len(documents)} documents, not one question")
    tree = documents[0].tree()
    request = decision_pb2.EvaluateRequest()
    manifests.fill(request, tree.value, tree, (), documents[0])
    request.tenant = request.tenant or client.tenant_option or ""
    request.explain = request.explain or explain
    metadata = () if token_file is None else (authorization(token_file, "--token-file", address, "--address"),)
    response = _ask(client, address, request, metadata)
    if client.output == "table":
        show_decision(response)
        if request.explain and not response.HasField("explanation"):
            click.echo("note: the sidecar gave no explanation; this caller may lack the diagnose permission", err=True)
    else:
        print_data(client, as_dict(response))
    return _EXIT_CODES.get(response.outcome, REFUSED)


def _ask(
    client: Client, address: str, request: decision_pb2.EvaluateRequest, metadata: Sequence[tuple[str, str]]
) -> decision_pb2.EvaluateResponse:
    with open_channel(address) as channel:
        stub = decision_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            response: decision_pb2.EvaluateResponse = stub.Evaluate(
                request, timeout=client.deadline_s, metadata=metadata
            )
        except grpc.RpcError as error:
            raise from_rpc(error, address) from None
    return response
