"""The classes of commands: options that work in every position, errors in one line, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from controlplane.cli.client import DEFAULT_DEADLINE_S, DEFAULT_SERVER, Client
from controlplane.cli.failures import BAD_INPUT, REFUSED, Failure
from controlplane.cli.values import DURATION
from engine.errors import InvalidInputError

INTERRUPTED = 130


def _shared_options(*, root: bool) -> list[click.Parameter]:
    """The options every command takes. Only the root reads the environment, so that it never beats a given option."""

    def option(*names: str, attribute: str, env: str | None = None, **more: Any) -> click.Option:
        def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
            if value is not None:
                setattr(ctx.ensure_object(Client), attribute, value)

        env = env if root else None
        return click.Option(
            names, callback=remember, expose_value=False, envvar=env, show_envvar=env is not None, **more
        )

    return [
        option(
            "--server",
            "-s",
            attribute="server",
            env="SIDESTEP_SERVER",
            metavar="HOST:PORT",
            help=f"Control plane.  [default: {DEFAULT_SERVER}]",
        ),
        option("--tenant", "-t", attribute="tenant_option", env="SIDESTEP_TENANT", help="Tenant id."),
        option(
            "--output",
            "-o",
            attribute="output",
            type=click.Choice(["table", "json", "yaml"]),
            help="How to print.  [default: table]",
        ),
        option(
            "--operator-token-file",
            attribute="operator_token_file",
            env="SIDESTEP_OPERATOR_TOKEN_FILE",
            metavar="PATH",
            help="File with your token as an operator.",
        ),
        option(
            "--ca",
            attribute="ca_file",
            env="SIDESTEP_SERVER_CA",
            metavar="PATH",
            help="Authorities of the control plane's certificate, in PEM: TLS.",
        ),
        option("--cert", attribute="cert_file", env="SIDESTEP_SERVER_CERT", metavar="PATH", help="Your certificate."),
        option("--key", attribute="key_file", env="SIDESTEP_SERVER_KEY", metavar="PATH", help="Its private key."),
        option(
            "--actor",
            attribute="actor",
            env="SIDESTEP_ACTOR",
            metavar="NAME",
            help="Your name, for a control plane in development mode.",
        ),
        option(
            "--deadline",
            attribute="deadline_s",
            type=DURATION,
            help=f"Longest wait for an answer.  [default: {DEFAULT_DEADLINE_S:g}s]",
        ),
    ]


pass_client = click.make_pass_decorator(Client, ensure=True)


class Leaf(click.Command):
    """A command that does something; takes the shared options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {name for param in self.params for name in param.opts}
        self.params += [option for option in _shared_options(root=False) if not taken.intersection(option.opts)]

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command and closes its connection."""
        try:
            return super().invoke(ctx)
        finally:
            if isinstance(ctx.obj, Client):
                ctx.obj.close()


class Family(click.Group):
    """A group of commands about one thing."""

    command_class = Leaf
    group_class = type


class Program(click.Group):
    """The whole program: the shared options, and errors as `error: ...` on stderr with the documented exit codes."""

    command_class = Leaf
    group_class = Family

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _shared_options(root=True)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name; a family also by the plural or singular of its name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        families = (family for family in self.commands.values() if isinstance(family, Family))
        return next((family for family in families if _plural(family.name) == _plural(cmd_name)), None)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Runs one command and exits."""
        extra["standalone_mode"] = False
        try:
            outcome = super().main(args, *rest, **extra)
        except Failure as failure:
            for line in failure.lines():
                click.echo(line, err=True)
            sys.exit(failure.code)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(BAD_INPUT)
        except click.ClickException as error:
            click.echo(f"error: {error.format_message()}", err=True)
            sys.exit(BAD_INPUT)
        except InvalidInputError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(BAD_INPUT)
        except (click.Abort, KeyboardInterrupt):
            click.echo("error: interrupted", err=True)
            sys.exit(INTERRUPTED)
        except OSError as error:
            click.echo(f"error: {error.filename or 'file'}: {error.strerror or error}", err=True)
            sys.exit(REFUSED if error.filename is None else BAD_INPUT)
        sys.exit(outcome if isinstance(outcome, int) else 0)


def _plural(name: str | None) -> str:
    """`sidecar` and `sidecars` as `sidecars`, `policy` as `policies`."""
    name = name or ""
    if name.endswith("ss"):
        return f"{name}es"
    if name.endswith("s"):
        return name
    return f"{name[:-1]}ies" if name.endswith("y") and not name.endswith("ey") else f"{name}s"
