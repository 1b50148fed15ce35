"""Policies: parsing what an author wrote, and compiling what the control plane stored."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pydantic import ValidationError

from engine.policy.conditions import ConditionError, Language
from engine.policy.model import PolicyDocument, json_schema
from engine.policy.source import Path, PolicyError, Problem, Tree, format_path, load

__all__ = [
    "ParsedPolicy",
    "PolicyDocument",
    "PolicyError",
    "Problem",
    "check_condition",
    "json_schema",
    "parse_policy",
    "problem_of",
    "read_document",
]


class ParsedPolicy(NamedTuple):
    """An accepted policy. `document` is canonical JSON: the same policy always has the same text."""

    name: str
    tenant: str
    document: str
    model: PolicyDocument
    warnings: list[str]


def parse_policy(source: str) -> ParsedPolicy:
    """Validates a policy in YAML, conditions included. Raises PolicyError with line, column and path of every problem."""
    tree = load(source)
    if not isinstance(tree.value, dict):
        raise PolicyError(
            [Problem(*tree.position(()), "", "a policy is a mapping with apiVersion, kind, metadata and spec")]
        )
    try:
        model = PolicyDocument.model_validate(tree.value)
    except ValidationError as error:
        raise PolicyError([problem_of(tree, detail) for detail in error.errors(include_url=False)]) from None
    problems = _check_conditions(model, tree)
    if problems:
        raise PolicyError(problems)
    document = json.dumps(_plain(tree.value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return ParsedPolicy(model.metadata.name, model.metadata.tenant, document, model, _warnings(model))


def read_document(document: str) -> PolicyDocument:
    """A policy from its canonical JSON. Raises PolicyError, for instance where a newer control plane wrote it."""
    try:
        return PolicyDocument.model_validate(json.loads(document))
    except ValidationError as error:
        problems = [
            Problem(0, 0, format_path(_path(detail["loc"])), detail["msg"])
            for detail in error.errors(include_url=False)
        ]
        raise PolicyError(problems) from None
    except ValueError as error:
        raise PolicyError([Problem(0, 0, "", f"not JSON: {error}")]) from None


def check_condition(source: str) -> None:
    """Type-checks a grant's condition, which can read the built-in values. Raises PolicyError."""
    try:
        Language().compile(source)
    except ConditionError as error:
        raise PolicyError([problem._replace(path="condition") for problem in error.problems]) from None


def _check_conditions(model: PolicyDocument, tree: Tree) -> list[Problem]:
    language = Language(model.spec.context)
    problems = []
    stated: list[tuple[Path, str]] = [
        (("spec", "triggers", index, "when"), trigger.when) for index, trigger in enumerate(model.spec.triggers)
    ]
    canary = model.spec.guards.canary if model.spec.guards is not None else None
    stated += [
        (("spec", "guards", "canary", "when", index, "when"), condition.when)
        for index, condition in enumerate(canary.when if canary is not None else ())
    ]
    for path, source in stated:
        try:
            language.compile(source)
        except ConditionError as error:
            for problem in error.problems:
                line, column = (
                    tree.position_within(path, problem.line, problem.column) if problem.line else tree.position(path)
                )
                problems.append(Problem(line, column, format_path(path), problem.message))
    return problems


def _warnings(model: PolicyDocument) -> list[str]:
    warnings = []
    spec = model.spec
    if spec.require.empty and spec.profile is None and not spec.triggers:
        warnings.append("spec: requires nothing; every action it matches is allowed")
    if spec.require.evidence == "asserted":
        warnings.append("spec.require.evidence: believes the caller's word; a token proves more")
    if spec.exemptions is not None and spec.require.waivable is False:
        warnings.append("spec.exemptions: nothing is waivable, so no grant can ever apply")
    warnings += [
        f"spec.triggers {trigger.name}: a grant may waive this trigger's requirement"
        for trigger in spec.triggers
        if trigger.require.waivable
    ]
    return warnings


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def problem_of(tree: Tree, detail: Any) -> Problem:
    """One of pydantic's error details, with its place in the document."""
    path = _path(detail["loc"])
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        message = "unknown key"
    elif detail["type"] == "missing":
        message = "is required"
    line, column = tree.position(path)
    return Problem(line, column, format_path(path), message)


def _path(location: tuple[str | int, ...]) -> Path:
    """Pydantic's location, without the parts it adds for validators."""
    return tuple(
        part for part in location if isinstance(part, int) or not part.startswith(("function-", "constrained-"))
    )
