"""A decision for a person to read."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sidestep.v1 import decision_pb2 as pb
from sidestep.v1 import resources_pb2

from controlplane.cli.output import console, instant, span

_STYLES = {"ALLOW": "bold green", "STEP_UP": "bold yellow", "DENY": "bold red"}


def show_decision(response: pb.EvaluateResponse) -> None:
    """Prints a decision, and its explanation if it has one."""
    out = console()
    reason = _word(pb.CoarseReason, response.reason).lower().replace("_", " ")
    out.print(outcome_line(_word(pb.Outcome, response.outcome), f"{_word(pb.Basis, response.basis)}: {reason}"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _facts(response):
        table.add_row(label, Text(value))
    out.print(table)
    if response.HasField("explanation"):
        show_explanation(out, response.explanation)


def _facts(response: pb.EvaluateResponse) -> list[tuple[str, str]]:
    rows = [("required", _requirement(response.requirement)), ("achieved", response.achieved_acr or "nothing")]
    if response.waived_acrs:
        rows.append(("waived", " ".join(response.waived_acrs)))
    if response.grant:
        rows.append(("grant", response.grant))
    if response.HasField("challenge"):
        challenge = response.challenge
        methods = [f"{method.id} ({method.acr or 'no acr'})" for method in challenge.methods]
        rows.append(("challenge", ", then ".join(methods) or "log in again"))
        if challenge.www_authenticate:
            rows.append(("www-authenticate", challenge.www_authenticate))
    data = response.data
    age = span(data.age) if data.HasField("age") else "unknown"
    rows.append(("data", f"{age} old, urgent {_revision(data.urgent)}, bulk {_revision(data.bulk)}"))
    rows.append(("decision", response.decision_id))
    return rows


def _requirement(requirement: pb.EffectiveRequirement) -> str:
    parts = [" and ".join(requirement.acrs)] if requirement.acrs else []
    if requirement.HasField("max_age"):
        parts.append(f"at most {span(requirement.max_age)} old")
    if requirement.HasField("authenticated_after"):
        parts.append(f"after {instant(requirement.authenticated_after)}")
    if parts and requirement.evidence:
        parts.append(_word(resources_pb2.Evidence, requirement.evidence).lower())
    return ", ".join(parts) or "nothing"


def outcome_line(outcome: str, basis: str) -> Text:
    """The outcome in its colour, and what it rests on."""
    return Text(outcome, style=_STYLES.get(outcome, "bold")).append(f"  {basis}", style="not bold default")


def show_explanation(out: Console, explanation: pb.Explanation) -> None:
    """Prints the steps, each factor's values beside their thresholds, and the smallest change to ALLOW."""
    out.print()
    for step in explanation.steps:
        out.print(Text(f"{step.step}. {step.title}", style="bold").append(f"  {step.detail}", style="not bold"))
    if explanation.factors:
        out.print()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("FACTOR", "CHECK", "MEASURED", "THRESHOLD", ""):
            table.add_column(heading, overflow="fold")
        for factor in explanation.factors:
            table.add_row(Text(factor.factor, style="bold"), "", "", "", _verdict(factor.passed))
            for check in factor.checks:
                table.add_row("", Text(check.name), Text(check.measured), Text(check.threshold), _verdict(check.passed))
        out.print(table)
    lists = (("reasons", explanation.reasons), ("policies", explanation.policies))
    for label, items in lists:
        if items:
            out.print(Text(f"{label}: ", style="dim").append("; ".join(items), style="not dim"))
    for shadow in explanation.shadows:
        line = f"{shadow.policy} would have said {_word(pb.Outcome, shadow.outcome)}, {_word(pb.Basis, shadow.basis)}"
        out.print(Text("observed: ", style="dim").append(line, style="not dim"))
    if explanation.smallest_change:
        out.print(Text("to get ALLOW: ", style="bold").append(explanation.smallest_change, style="not bold"))


def _verdict(passed: bool) -> Text:
    return Text("passed", style="green") if passed else Text("failed", style="red")


def _word(enum: Any, number: int) -> str:
    """`OUTCOME_STEP_UP` as `STEP_UP`."""
    try:
        name: str = enum.Name(number)
    except ValueError:
        return str(number)
    return name.removeprefix(enum.Name(0).removesuffix("UNSPECIFIED"))


def _revision(revision: resources_pb2.Revision) -> str:
    return f"{revision.epoch}:{revision.revision}"
