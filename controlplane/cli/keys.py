"""`sidestep key`: add, get, list, delete. Secrets are never printed."""

from __future__ import annotations

import json
from typing import BinaryIO

import click
from sidestep.v1 import resources_pb2 as pb

from controlplane.api.jwk import check_jwk, jwk_from_pem
from controlplane.cli.changes import Change, put_record
from controlplane.cli.client import Client
from controlplane.cli.common import add_delete, add_get, add_list
from controlplane.cli.failures import Failure
from controlplane.cli.program import Family, pass_client
from controlplane.cli.values import INSTANT, exactly_one, set_time
from engine.names import Collection

_KINDS = {"issuer": pb.KEY_KIND_ISSUER, "fingerprint": pb.KEY_KIND_FINGERPRINT, "tenant": pb.KEY_KIND_TENANT}
_MAX_FILE_BYTES = 256 * 1024


@click.group(cls=Family)
def key() -> None:
    """Keys: token issuers' public keys, and the tenant's secrets."""


add_get(key, Collection.KEYS, "key")
add_list(key, Collection.KEYS, "keys")
add_delete(key, Collection.KEYS, "key")


@key.command(cls=Change)
@click.argument("record_id", metavar="ID")
@click.option("--kind", type=click.Choice(list(_KINDS)), default="issuer", show_default=True, help="What it is for.")
@click.option("--issuer", help="Issuer key: the `iss` it signs for.")
@click.option("--jwk", type=click.File("rb"), help="Issuer key: a file with the public JWK, or a JWK set with kid ID.")
@click.option("--pem", type=click.File("rb"), help="Issuer key: a file with the public key or certificate in PEM.")
@click.option("--starts", type=INSTANT, help="Usable from.  [default: at once]")
@click.option("--expires", type=INSTANT, help="Usable until.  [default: no end]")
@pass_client
def add(
    client: Client,
    record_id: str,
    kind: str,
    issuer: str | None,
    jwk: BinaryIO | None,
    pem: BinaryIO | None,
    starts: float | None,
    expires: float | None,
) -> None:
    """Add a key, or change an issuer key. Its ID is the key id (`kid`) that tokens name.

    The secret of a fingerprint or tenant key is made by the control plane and stays there.
    """
    record = pb.Key(name=client.name(Collection.KEYS, record_id), kind=_KINDS[kind])
    if kind == "issuer":
        exactly_one({"--jwk": jwk, "--pem": pem})
        if issuer is None:
            raise Failure("--issuer: is required for an issuer key")
        record.issuer = issuer
        if pem is not None:
            record.jwk = jwk_from_pem(pem.read(_MAX_FILE_BYTES), "--pem")
        elif jwk is not None:
            record.jwk = _pick(jwk.read(_MAX_FILE_BYTES), record_id)
        check_jwk(record.jwk, record_id, "--jwk")
    elif issuer or jwk or pem:
        raise Failure(f"--kind: a {kind} key has no --issuer, --jwk or --pem")
    set_time(record.start_time, starts)
    set_time(record.expire_time, expires)
    put_record(client, record)


def _pick(data: bytes, key_id: str) -> str:
    """The JWK in a file: the whole of it, or the one of that id in a set (RFC 7517 section 5)."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Failure(f"--jwk: not JSON: {error}") from None
    if isinstance(value, dict) and isinstance(value.get("keys"), list):
        found = [jwk for jwk in value["keys"] if isinstance(jwk, dict) and jwk.get("kid") == key_id]
        if len(found) != 1:
            raise Failure(f"--jwk: the set has {len(found)} keys with kid {key_id!r}")
        value = found[0]
    return json.dumps(value)
