"""Step 6: what to ask of the user (RFC 9470 step-up, RFC 6750 invalid_token)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.cooloff import by_phone
from engine.decision import Challenge, Requirement
from engine.facts import Subject
from engine.methods import Method
from engine.plan import Plan
from engine.rules import TenantRules

INVALID_TOKEN = Challenge(invalid_token=True)
# As far as the API's 32 bits reach, 136 years.
MAX_AGE_S = 2**32 - 1


def challenge(requirement: Requirement, plan: Plan, rules: TenantRules, subject: Subject, now: float) -> Challenge:
    """The methods that satisfy the whole requirement, strongest first. After a SIM change none that rests on a phone number, if
    there is another.

    Those the subject has enrolled, if any; a subject that is unknown or has none acceptable gets the policy's own list, so
    that the answer does not tell the two apart.
    """
    reaching = _reaching(plan.methods, requirement, rules) or _reaching(_strongest_first(rules), requirement, rules)
    acceptable = reaching or plan.methods
    if subject.sim_changed_at is not None and now < subject.sim_changed_at + rules.cool_off_s:
        acceptable = tuple(method for method in acceptable if not by_phone(method.amr)) or acceptable
    enrolled = [method for method in acceptable if method.id in subject.methods] if subject.known else []
    return Challenge(
        methods=tuple(method.id for method in (enrolled or acceptable)),
        acr_values=_acr_values(requirement, reaching, rules),
        max_age_s=None if requirement.max_age_s is None else min(int(requirement.max_age_s), MAX_AGE_S),
    )


def _strongest_first(rules: TenantRules) -> tuple[Method, ...]:
    return tuple(sorted(rules.catalogue, key=lambda method: (-method.rank, method.id)))


def _reaching(methods: Iterable[Method], requirement: Requirement, rules: TenantRules) -> tuple[Method, ...]:
    return tuple(method for method in methods if rules.order.implies_all(method.acr, requirement.acrs))


def _acr_values(requirement: Requirement, reaching: Sequence[Method], rules: TenantRules) -> tuple[str, ...]:
    """Levels that each satisfy the whole requirement, preferred first: any one of `acr_values` must be enough (RFC 9470)."""
    dominating = [acr for acr in requirement.acrs if rules.order.implies_all(acr, requirement.acrs)]
    if dominating:
        return (dominating[0],)
    # None of the demanded levels includes the others: name what the methods reach, else all of them.
    reached = tuple(dict.fromkeys(method.acr for method in reaching)) if requirement.acrs else ()
    return reached or requirement.acrs


def www_authenticate(challenge: Challenge, *, scheme: str = "Bearer") -> str:
    """The WWW-Authenticate header value. `scheme` is `DPoP` for tokens bound to a key (RFC 9449 section 7.1)."""
    if challenge.invalid_token:
        return f'{scheme} error="invalid_token", error_description="The session or token is not valid"'
    parts = [
        f'{scheme} error="insufficient_user_authentication"',
        'error_description="A different authentication level is required"',
    ]
    if challenge.acr_values:
        parts.append(f'acr_values="{" ".join(challenge.acr_values)}"')
    if challenge.max_age_s is not None:
        parts.append(f'max_age="{challenge.max_age_s}"')
    return ", ".join(parts)
