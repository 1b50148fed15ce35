"""Clauses: the single demands a requirement is made of, and whether one authentication meets them.

One single event must meet every clause. A clause is never met by the level of one event and the time of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from engine.acr import AcrOrder
from engine.decision import Code, Requirement
from engine.facts import Authentication, Evidence, Facts

RECOVERY = "recovery"
POSTURE_CHANGE = "posture-change"


class Clause(NamedTuple):
    """One demand. `name` is what decisions cite: `payments/high-value`."""

    name: str
    acr: str | None = None
    max_age_s: float | None = None
    max_idle_s: float | None = None
    # RECOVERY or POSTURE_CHANGE: the authentication must be later than the last such event.
    after: str | None = None
    evidence: Evidence = Evidence.VERIFIED
    waivable: bool = False
    # Why the clause applies, where that is not simply the policy's base.
    cause: Code | None = None
    # The authentication must be later than this.
    after_at: float | None = None


class Ceiling(NamedTuple):
    """The most that may be waived: clauses up to `acr`, with a max_age no shorter than `max_age_s`."""

    acr: str
    max_age_s: float

    def covers(self, clause: Clause, order: AcrOrder) -> bool:
        """Whether the clause lies within. Idle limits and events (a recovery, say) are never waived."""
        if clause.max_idle_s is not None or clause.after is not None or clause.after_at is not None:
            return False
        if clause.acr is not None and not order.implies(self.acr, clause.acr):
            return False
        return clause.max_age_s is None or clause.max_age_s >= self.max_age_s


class Standing(NamedTuple):
    """How the best authentication stands: what it leaves unmet, and why."""

    authentication: Authentication | None
    unmet: tuple[tuple[Clause, Code], ...]


def total(clauses: Sequence[Clause], facts: Facts) -> Requirement:
    """All clauses as one requirement: every acr, the shortest times, the latest event, the strictest evidence."""
    if not clauses:
        return Requirement()
    ages = [clause.max_age_s for clause in clauses if clause.max_age_s is not None]
    idles = [clause.max_idle_s for clause in clauses if clause.max_idle_s is not None]
    events = [at for clause in clauses if (at := event_at(clause, facts)) is not None]
    return Requirement(
        acrs=tuple(dict.fromkeys(clause.acr for clause in clauses if clause.acr is not None)),
        max_age_s=min(ages) if ages else None,
        max_idle_s=min(idles) if idles else None,
        authenticated_after=max(events) if events else None,
        evidence=Evidence.VERIFIED
        if any(clause.evidence is Evidence.VERIFIED for clause in clauses)
        else Evidence.ASSERTED,
    )


def event_at(clause: Clause, facts: Facts) -> float | None:
    """When the event a clause refers to last happened; None if never, or if it refers to none."""
    if clause.after_at is not None:
        return clause.after_at
    if clause.after == RECOVERY:
        return facts.subject.recovered_at
    if clause.after == POSTURE_CHANGE:
        return facts.posture_changed_at
    return None


def standings(
    clauses: Sequence[Clause],
    authentications: Sequence[Authentication],
    facts: Facts,
    order: AcrOrder,
    clock_skew_s: float,
) -> list[Standing]:
    """How each authentication stands, best first: the fewest clauses unmet that no grant may waive, then the fewest unmet.

    Only the first that meets everything, if one does. Without any authentication one entry, with everything unmet.
    """
    found = []
    for authentication in authentications:
        unmet = tuple(_unmet(clauses, authentication, facts, order, clock_skew_s))
        if not unmet:
            return [Standing(authentication, ())]
        found.append(Standing(authentication, unmet))
    found.sort(key=lambda standing: (sum(not clause.waivable for clause, _ in standing.unmet), len(standing.unmet)))
    return found or [Standing(None, tuple((clause, Code.NO_AUTHENTICATION) for clause in clauses))]


def _unmet(
    clauses: Iterable[Clause], authentication: Authentication, facts: Facts, order: AcrOrder, clock_skew_s: float
) -> Iterable[tuple[Clause, Code]]:
    for clause in clauses:
        code = unmet_code(clause, authentication, facts, order, clock_skew_s)
        if code is not None:
            yield clause, code


def unmet_code(
    clause: Clause, authentication: Authentication, facts: Facts, order: AcrOrder, clock_skew_s: float
) -> Code | None:
    """Why this authentication does not meet this clause; None if it does."""
    at = authentication.at
    age_s = None if at is None else facts.now - at
    asserted = authentication.evidence is not Evidence.VERIFIED
    if age_s is not None and age_s < -clock_skew_s:
        return Code.AUTHENTICATION_IN_FUTURE
    if clause.evidence is Evidence.VERIFIED and asserted:
        return Code.EVIDENCE_NOT_VERIFIED
    if asserted and at is None:
        # Else leaving out an impossible time would make an assertion better.
        return Code.AUTHENTICATION_TOO_OLD
    if clause.acr is not None and not order.implies(authentication.acr, clause.acr):
        return Code.ACR_UNMET
    if clause.max_age_s is not None and (age_s is None or age_s > clause.max_age_s):
        return Code.AUTHENTICATION_TOO_OLD
    event = event_at(clause, facts)
    if event is not None and (at is None or at <= event):
        return Code.AUTHENTICATED_BEFORE_EVENT
    if clause.max_idle_s is not None and not _active_within(clause.max_idle_s, age_s, facts, clock_skew_s):
        return Code.SESSION_IDLE
    return None


def _active_within(max_idle_s: float, age_s: float | None, facts: Facts, clock_skew_s: float) -> bool:
    if age_s is not None and age_s <= max_idle_s:
        return True
    last = facts.session.last_active_at
    return last is not None and -clock_skew_s <= facts.now - last <= max_idle_s
