"""`sidestep signing-key`: new, public. For files on this machine; no control plane is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import click

from controlplane.cli.failures import Failure
from controlplane.cli.program import Family
from controlplane.errors import SettingsError
from controlplane.signing import new_key, public_pem

_MAX_FILE_BYTES = 16 * 1024


@click.group("signing-key", cls=Family)
def signing_key() -> None:
    """Keys by which the control plane signs what it sends to sidecars."""


@signing_key.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
def new(path: Path) -> None:
    """Make a key (Ed25519) in a new FILE that only you may read; print its id."""
    private = new_key()
    try:
        # Never another's file: one that exists stays as it is.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(private)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None
    click.echo(public_pem(private, str(path))[0])


@signing_key.command()
@click.argument("file", metavar="FILE", type=click.File("rb"))
def public(file: BinaryIO) -> None:
    """Print the public key of a key in FILE: what sidecars are to trust (SIDESTEP_TRUSTED_KEYS)."""
    try:
        key_id, pem = public_pem(file.read(_MAX_FILE_BYTES), file.name)
    except SettingsError as error:
        raise Failure(str(error)) from None
    click.echo(f"# {key_id}\n{pem.decode()}", nl=False)
