"""Guards in a decision: what a finding demands, and how the guards of several policies make one.

Detectors and their state are the sidecar's (`sidecar.guard`); here are only their findings, which are facts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from engine.clauses import Clause
from engine.decision import Code
from engine.facts import Evidence, Finding
from engine.policy import model
from engine.policy.guards import GUARDS, Guard, strictest

PREFIX: Final = "guard/"
_AMOUNT_LIMIT = re.compile(r"context\.amount\.value\s*(?:>=?|<=?)\s*(\d+(?:\.\d+)?)")


class GuardRule(NamedTuple):
    """One guard as it holds for an action: the strictest of what the matching policies say."""

    name: str
    settings: Guard
    # What it demands, once for each policy that demands something else; without the time of the finding.
    clauses: tuple[Clause, ...]
    # Some policy says that only time clears it.
    lasting: bool


def guard_rules(specs: Sequence[model.Spec], top: Clause) -> tuple[GuardRule, ...]:
    """The guards of all policies together, in the order of `GUARDS`. `top`: the tenant's top requirement."""
    by_name: dict[str, list[Guard]] = {}
    for spec in specs:
        if spec.guards is not None:
            for name, guard in spec.guards.enabled().items():
                by_name.setdefault(name, []).append(guard)
    return tuple(
        GuardRule(
            name,
            strictest(by_name[name]),
            tuple(dict.fromkeys(_clause(name, guard, top) for guard in by_name[name])),
            any(guard.cleared_by == "expiry" for guard in by_name[name]),
        )
        for name in GUARDS
        if name in by_name
    )


def _clause(name: str, guard: Guard, top: Clause) -> Clause:
    """An authentication after the finding is as fresh as it need be; where it does not clear it, maxAge holds too."""
    acr, max_age_s, evidence = top.acr, top.max_age_s, top.evidence
    if guard.require is not None:
        acr, max_age_s, evidence = guard.require.acr, guard.require.max_age, Evidence.VERIFIED
    kept_s = max_age_s if guard.cleared_by == "expiry" else None
    return Clause(f"{PREFIX}{name}", acr, kept_s, evidence=evidence, cause=Code.GUARD_RAISED)


def raised_clauses(findings: Sequence[Finding], rules: Sequence[GuardRule]) -> list[Clause]:
    """Step 3: what the findings demand, where a rule takes them seriously."""
    return [
        clause._replace(after_at=finding.since) for finding, rule in _raised(findings, rules) for clause in rule.clauses
    ]


def barring(findings: Sequence[Finding], rules: Sequence[GuardRule]) -> list[str]:
    """Step 5: clauses of raised guards that bar exemptions even where an authentication meets them."""
    return [f"{PREFIX}{rule.name}" for _, rule in _raised(findings, rules) if rule.lasting]


def _raised(findings: Iterable[Finding], rules: Sequence[GuardRule]) -> list[tuple[Finding, GuardRule]]:
    return [
        (finding, rule)
        for finding in findings
        for rule in rules
        # Negated, so that NaN is raised too.
        if rule.name == finding.name and not finding.confidence < rule.settings.min_confidence
    ]


def amount_limits(sources: Iterable[str]) -> tuple[float, ...]:
    """The numbers that conditions compare an amount with, in rising order."""
    return tuple(sorted({float(limit) for source in sources for limit in _AMOUNT_LIMIT.findall(source)}))
