"""`sidestep`: the program."""

from __future__ import annotations

import click

from controlplane.cli.access import access
from controlplane.cli.apply import apply
from controlplane.cli.audit import audit as audit_sidecars
from controlplane.cli.auditlog import audit
from controlplane.cli.budgets import budget
from controlplane.cli.classes import grant_class
from controlplane.cli.decisions import decisions
from controlplane.cli.devices import device
from controlplane.cli.evaluate import evaluate
from controlplane.cli.findings import finding
from controlplane.cli.fleet import revisions, rollout, sidecar
from controlplane.cli.grants import grant
from controlplane.cli.journal import journal
from controlplane.cli.keys import key
from controlplane.cli.policies import policy
from controlplane.cli.program import Program
from controlplane.cli.proposals import proposal
from controlplane.cli.rehearsal import explain_policy, test_policy
from controlplane.cli.sessions import session
from controlplane.cli.signals import signal
from controlplane.cli.signing import signing_key
from controlplane.cli.simulate import simulate
from controlplane.cli.subjects import subject
from controlplane.cli.tenants import posture, settings


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sidestep")
def cli() -> None:
    """Administer a Sidestep control plane, and ask a sidecar for decisions.

    The shared options may stand before or after the command. A group answers to its plural too: `sidecars audit`.
    """


for command in (
    policy,
    device,
    subject,
    budget,
    grant,
    grant_class,
    finding,
    access,
    signal,
    session,
    key,
    settings,
    posture,
    sidecar,
    rollout,
    revisions,
    audit,
    proposal,
    apply,
    evaluate,
    decisions,
    journal,
    simulate,
    signing_key,
):
    cli.add_command(command)
sidecar.add_command(audit_sidecars)
policy.add_command(test_policy)
policy.add_command(explain_policy)


if __name__ == "__main__":
    cli()
