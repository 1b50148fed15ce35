"""`sidestep settings` and `sidestep posture`: the records a tenant has one of."""

from __future__ import annotations

from typing import TextIO

import click
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli import manifests
from controlplane.cli.changes import Change, put_record
from controlplane.cli.client import Client
from controlplane.cli.output import show_record
from controlplane.cli.program import Family, pass_client
from engine.names import SINGLETON_ID, Collection

_LEVELS = {
    "low": pb.POSTURE_LEVEL_LOW,
    "elevated": pb.POSTURE_LEVEL_ELEVATED,
    "high": pb.POSTURE_LEVEL_HIGH,
    "critical": pb.POSTURE_LEVEL_CRITICAL,
}


@click.group(cls=Family)
def settings() -> None:
    """The tenant's settings: acr order, issuers, methods, fingerprint components."""


@settings.command("get")
@pass_client
def get_settings(client: Client) -> None:
    """Show the settings. Not found means that the built-in values hold."""
    show_record(client, client.get(Collection.SETTINGS, SINGLETON_ID))


@settings.command("put", cls=Change)
@click.argument("file", type=click.File(encoding="utf-8"))
@pass_client
def put_settings(client: Client, file: TextIO) -> None:
    """Replace the settings by the document in FILE (kind: Settings)."""
    put_record(client, manifests.read_one(file, client.tenant_option, "Settings").record)


@click.group(cls=Family)
def posture() -> None:
    """The tenant's threat level and the kill switch for exemptions."""


@posture.command("get")
@pass_client
def get_posture(client: Client) -> None:
    """Show the posture. A tenant that never set one is at LOW with exemptions on."""
    show_record(client, _current(client))


@posture.command("set", cls=Change)
@click.argument("level", type=click.Choice(list(_LEVELS), case_sensitive=False))
@click.option("--reason", default="", help="Why.")
@pass_client
def set_posture(client: Client, level: str, reason: str) -> None:
    """Set the threat level. The kill switch stays as it is."""
    record = _current(client)
    record.level = _LEVELS[level.lower()]
    record.reason = reason
    put_record(client, record)


@posture.command("kill-switch", cls=Change)
@click.argument("switch", metavar="on|off", type=click.Choice(["on", "off"]))
@click.option("--reason", default="", help="Why.")
@pass_client
def kill_switch(client: Client, switch: str, reason: str) -> None:
    """`on`: no grant applies anywhere in the tenant. The level stays as it is."""
    record = _current(client)
    record.exemptions_off = switch == "on"
    record.reason = reason
    put_record(client, record)


def _current(client: Client) -> pb.Posture:
    return client.find(Collection.POSTURES, SINGLETON_ID) or pb.Posture(
        name=client.name(Collection.POSTURES, SINGLETON_ID), level=pb.POSTURE_LEVEL_LOW
    )
