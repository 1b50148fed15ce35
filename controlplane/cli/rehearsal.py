"""`sidestep policy test` and `sidestep policy explain`: policies tried on made-up facts, without any server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

import click
import msgspec
from rich.text import Text
from sidestep.v1 import decision_pb2

from controlplane.cli.client import Client
from controlplane.cli.decision import outcome_line, show_explanation
from controlplane.cli.failures import REFUSED, Failure, Fault
from controlplane.cli.manifests import only_document
from controlplane.cli.output import as_dict, console, print_data
from controlplane.cli.policies import check_locally
from controlplane.cli.program import Leaf, pass_client
from controlplane.cli.values import label
from engine.cases import CaseResult, run_cases
from engine.explain import explain
from engine.policy import PolicyError

_POLICY = click.argument("policy_file", metavar="POLICY", type=click.File(encoding="utf-8"))
_CASES = click.argument("cases_file", metavar="CASES", type=click.File(encoding="utf-8"))
_WITH = click.option(
    "--with",
    "others",
    type=click.File(encoding="utf-8"),
    multiple=True,
    help="Further policy that holds beside it, such as the live one of an observed candidate; repeat for several.",
)
_CASE = click.option("--case", "names", multiple=True, help="Only the case of this name; repeat for several.")


@click.command("test", cls=Leaf)
@_POLICY
@_CASES
@_WITH
@_CASE
@pass_client
def test_policy(
    client: Client, policy_file: TextIO, cases_file: TextIO, others: tuple[TextIO, ...], names: tuple[str, ...]
) -> int:
    """Decide every case in CASES by POLICY and compare with what it expects. Exits with 1 if one comes out otherwise."""
    results = _run(policy_file, cases_file, others, names)
    failed = sum(not result.passed for result in results)
    if client.output != "table":
        print_data(client, [_plain(result) for result in results])
        return REFUSED if failed else 0
    out = console()
    for result in results:
        verdict = Text("ok  ", style="green") if result.passed else Text("FAIL", style="bold red")
        out.print(verdict.append(f" {result.name}", style="not bold default"))
        for difference in result.differences:
            out.print(Text(f"       {difference}"))
    out.print(Text(f"{len(results)} cases, {len(results) - failed} as expected, {failed} not"))
    return REFUSED if failed else 0


@click.command("explain", cls=Leaf)
@_POLICY
@_CASES
@_WITH
@_CASE
@pass_client
def explain_policy(
    client: Client, policy_file: TextIO, cases_file: TextIO, others: tuple[TextIO, ...], names: tuple[str, ...]
) -> None:
    """Show how POLICY decides the cases in CASES: every step, every value beside its threshold, the smallest change."""
    results = _run(policy_file, cases_file, others, names)
    explained = [(result, _explanation(result)) for result in results]
    if client.output != "table":
        print_data(
            client,
            [{**_plain(result), "explanation": as_dict(explanation)} for result, explanation in explained],
        )
        return
    out = console()
    for index, (result, explanation) in enumerate(explained):
        if index:
            out.print()
        out.print(Text(result.name, style="bold underline"))
        out.print(outcome_line(result.actual.outcome.value, result.actual.basis.value))
        show_explanation(out, explanation)


def _run(policy_file: TextIO, cases_file: TextIO, others: Sequence[TextIO], names: Sequence[str]) -> list[CaseResult]:
    # Each policy is checked by itself first, so that what is left to be wrong is in the cases.
    policies = [only_document(file) for file in (policy_file, *others)]
    for document in policies:
        check_locally(document)
    cases = only_document(cases_file)
    try:
        results = run_cases(policies[0].text, cases.text, alongside=[document.text for document in policies[1:]])
    except PolicyError as error:
        raise cases.failure([Fault(*problem) for problem in error.problems]) from None
    missing = set(names) - {result.name for result in results}
    if missing:
        raise Failure(f"--case: {label(cases_file)} has no case {min(missing)!r}")
    return [result for result in results if not names or result.name in names]


def _explanation(result: CaseResult) -> decision_pb2.Explanation:
    """The engine's explanation in the API's words."""
    plain = msgspec.to_builtins(explain(result.facts, result.rules, result.actual))
    for shadow in plain["shadows"]:
        shadow["outcome"] = f"OUTCOME_{shadow['outcome']}"
        shadow["basis"] = f"BASIS_{shadow['basis']}"
    return decision_pb2.Explanation(**plain)


def _plain(result: CaseResult) -> dict[str, Any]:
    decision = result.actual
    return {
        "name": result.name,
        "passed": result.passed,
        "expected": result.expected,
        # Field by field, since the struct leaves out what has its default.
        "actual": {field: msgspec.to_builtins(getattr(decision, field)) for field in decision.__struct_fields__},
        "differences": result.differences,
    }
