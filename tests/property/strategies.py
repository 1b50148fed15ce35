"""Random policies and facts, near the boundaries of each other, so that every outcome comes up often.

Conditions of triggers are *monotone*: combinations by `&&` and `||` of tests that a higher risk, weaker device or session
evidence, more failures or a missing value can only make true (`risk.score >= 40.0`, `!device.known`, `session.idle_s > 900.0`).
Conditions on what the request says of itself (`context.country != 'DE'`) may be anything: they change by going missing only.
Grants' conditions are the mirror image (`risk.score < 40.0`). A policy whose trigger fires on *low* risk is outside the class:
the properties about risk, device and session do not hold for it, and need not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st
from msgspec.structs import replace

from engine.acr import AcrOrder
from engine.classes import GrantClass
from engine.clauses import Ceiling
from engine.facts import (
    Authentication,
    Binding,
    Data,
    Device,
    DeviceBlock,
    Evidence,
    Facts,
    Grant,
    GrantScope,
    Posture,
    Scalar,
    Session,
    Signal,
    Staleness,
    Subject,
    TokenState,
)
from engine.plan import Policy
from engine.risk import KINDS, combine
from engine.rules import TenantRules, compile_policy

NOW = 1_800_000_000.0
ACTION = "pay.now"
ACRS = st.sampled_from(
    ["nist-aal1", "nist-aal2", "nist-aal2", "nist-aal3", "nist-aal1", "phr", "phr", "phrh", "custom"]
)
AGES = st.sampled_from(["30s", "1m", "5m", "1h", "12h", "30d"])
# Seconds ago, on, just before and just after those ages; 29 s in the future is within the skew, 31 s is not.
AGO_S = st.sampled_from([0.0, 30.0, 59.0, 60.0, 61.0, 300.0, 301.0, 3600.0, 3601.0, 43200.0, 86400.0, -29.0, -31.0])
COOL_OFF_S = 100.0
_SCORES = st.sampled_from([0, 20, 40, 60])

Truth = Callable[[Facts], bool | None]


class Condition(NamedTuple):
    """A condition in CEL, and what it should say, written independently."""

    cel: str
    truth: Truth


def _told(read: Callable[[Facts], Any], test: Callable[[Any], bool]) -> Truth:
    def truth(facts: Facts) -> bool | None:
        value = read(facts)
        return None if value is None else test(value)

    return truth


def _device(read: Callable[[Device], Any]) -> Callable[[Facts], Any]:
    return lambda facts: read(facts.device) if facts.device.presented else None


def _ago(at: float | None) -> float | None:
    return None if at is None else NOW - at


def _risk_from(kind: str, score: float) -> Condition:
    return Condition(f"risk.{kind} >= {score}", _told(lambda f: getattr(f.risk, kind), lambda v: bool(v >= score)))


_FIRING = [
    *(_risk_from(kind, score) for kind in ("score", "network", "device") for score in (20.0, 40.0)),
    Condition("!device.known", _told(_device(lambda d: d.binding), lambda b: b is Binding.UNKNOWN)),
    Condition("!device.bound", _told(_device(lambda d: d.binding), lambda b: b is not Binding.BOUND)),
    Condition("device.trust < 0.9", _told(_device(lambda d: d.trust), lambda v: v < 0.9)),
    Condition(
        "device.validated_age_s > 3600.0",
        _told(lambda f: _ago(f.device.validated_at) if f.device.presented else None, lambda v: v > 3600),
    ),
    Condition(
        "session.idle_s > 60.0",
        _told(lambda f: _ago(f.session.last_active_at) if f.session.presented else None, lambda v: v > 60),
    ),
    Condition(
        "!session.verified",
        _told(lambda f: f.session.token if f.session.presented else None, lambda v: v is not TokenState.VERIFIED),
    ),
    Condition("!session.proved", _told(lambda f: f.session.proved if f.session.presented else None, lambda v: not v)),
    Condition("subject.failed_attempts >= 2", _told(lambda f: f.subject.failed_attempts, lambda v: v >= 2)),
    Condition("!subject.known", lambda f: not f.subject.known),
    Condition(
        "context.amount.value > 100.0",
        _told(lambda f: f.values.get("context.amount.value"), lambda v: isinstance(v, str) or v > 100),
    ),
    Condition("context.country != 'DE'", _told(lambda f: f.values.get("context.country"), lambda v: v != "DE")),
    Condition("context.vip", _told(lambda f: f.values.get("context.vip"), lambda v: bool(v))),
    Condition("!context.vip", _told(lambda f: f.values.get("context.vip"), lambda v: not v)),
    Condition("false", lambda f: False),
]


def _and(left: Condition, right: Condition) -> Condition:
    def truth(facts: Facts) -> bool | None:
        both = (left.truth(facts), right.truth(facts))
        return False if False in both else None if None in both else True

    return Condition(f"({left.cel}) && ({right.cel})", truth)


def _or(left: Condition, right: Condition) -> Condition:
    def truth(facts: Facts) -> bool | None:
        both = (left.truth(facts), right.truth(facts))
        return True if True in both else None if None in both else False

    return Condition(f"({left.cel}) || ({right.cel})", truth)


CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    st.sampled_from(_FIRING),
    lambda inner: st.builds(lambda join, a, b: join(a, b), st.sampled_from([_and, _or]), inner, inner),
    max_leaves=3,
)
_GRANT_CONDITIONS: dict[str, Truth] = {
    "": lambda f: True,
    "risk.score < 40.0": _told(lambda f: f.risk.score, lambda v: v < 40),
    "device.known": _told(_device(lambda d: d.binding), lambda b: b is not Binding.UNKNOWN),
    "context.amount.value <= 100.0": _told(
        lambda f: f.values.get("context.amount.value"), lambda v: not isinstance(v, str) and v <= 100
    ),
    "context.country == 'DE' || context.asn == 1": lambda f: (
        f.values.get("context.country") == "DE" or f.values.get("context.asn") == 1 or None
    ),
    "no such language": lambda f: None,
}


def grant_condition_holds(grant: Grant, facts: Facts) -> bool:
    """What a generated grant's condition should say."""
    return _GRANT_CONDITIONS[grant.condition](facts) is True


class Ruled(NamedTuple):
    """A tenant's rules, with the independent truth of every trigger's condition, by clause name."""

    rules: TenantRules
    truths: dict[str, Truth]
    policies: tuple[Policy, ...]


def _odds(draw: st.DrawFn, one_in: int) -> bool:
    """True once in so many draws; shrinks to False."""
    return draw(st.integers(0, one_in - 1)) == one_in - 1


@st.composite
def requires(draw: st.DrawFn) -> dict[str, Any]:
    """A requirement that demands something; mostly one that a grant can waive."""
    demand: dict[str, Any] = {"acr": draw(ACRS)}
    if draw(st.booleans()):
        demand["maxAge"] = draw(AGES)
    if _odds(draw, 8):
        demand["maxIdle"] = draw(st.sampled_from(["1m", "1h"]))
    if _odds(draw, 8):
        demand["authenticatedAfter"] = draw(st.sampled_from(["recovery", "posture-change"]))
    if _odds(draw, 4):
        demand["evidence"] = "asserted"
    if draw(st.booleans()):
        demand["waivable"] = not _odds(draw, 5)
    if len(demand) > 2 and _odds(draw, 4):
        del demand["acr"]
    if not demand.keys() & {"acr", "maxAge", "maxIdle", "authenticatedAfter"}:
        demand["acr"] = "phr"
    return demand


CEILINGS = st.fixed_dictionaries({"acr": ACRS, "maxAge": AGES})
_WITHIN = st.fixed_dictionaries({"acr": ACRS, "within": AGES})
_GENEROUS: dict[str, Any] = {
    "ceiling": {"acr": "phrh", "maxAge": "30s"},
    "recognisedCeiling": {"acr": "phrh", "maxAge": "30s"},
    "identity": {"minAcrWithin": {"acr": "nist-aal1", "within": "30d"}, "maxFailures": 2},
    "device": {"minTrust": 0.85, "revalidateEvery": "12h"},
    "session": {"maxAge": "12h", "maxIdle": "1h"},
    "risk": {"maxScore": 40},
}
_PARTS: dict[str, st.SearchStrategy[Any]] = {
    "ceiling": CEILINGS,
    "recognisedCeiling": CEILINGS,
    "identity": st.fixed_dictionaries({"minAcrWithin": _WITHIN}, optional={"maxFailures": st.integers(0, 3)}),
    "device": st.fixed_dictionaries(
        {"minTrust": st.sampled_from([0.5, 0.85, 0.9]), "revalidateEvery": AGES},
        optional={"revalidateJitter": st.sampled_from([0.0, 0.5]), "halfLife": AGES},
    ),
    "session": st.fixed_dictionaries(
        {"maxAge": AGES, "maxIdle": AGES},
        optional={"evidence": st.just("asserted"), "proofOfPossession": st.booleans()},
    ),
    "risk": st.fixed_dictionaries({"maxScore": _SCORES}),
    "spotCheckRate": st.sampled_from([0.0, 0.25]),
}


@st.composite
def exemptions(draw: st.DrawFn) -> dict[str, Any]:
    """Generous exemptions but for a few parts, so that a grant often fails by one bound alone."""
    made = dict(_GENEROUS)
    for part in draw(st.sets(st.sampled_from(sorted(_PARTS)), max_size=2)):
        made[part] = draw(_PARTS[part])
    if _odds(draw, 5):
        del made["recognisedCeiling"]
    return made


_TIGHTER = st.fixed_dictionaries(
    {},
    optional={
        "enabled": st.booleans(),
        "ceiling": CEILINGS,
        "identity": st.fixed_dictionaries({}, optional={"minAcrWithin": _WITHIN, "maxFailures": st.integers(0, 2)}),
        "device": st.fixed_dictionaries(
            {}, optional={"minTrust": st.just(0.9), "revalidateEvery": AGES, "bound": st.booleans()}
        ),
        "session": st.fixed_dictionaries(
            {}, optional={"maxAge": AGES, "maxIdle": AGES, "proofOfPossession": st.booleans()}
        ),
        "risk": st.fixed_dictionaries({"maxScore": _SCORES}),
        "spotCheckRate": st.just(0.5),
    },
)


@st.composite
def policies(draw: st.DrawFn, name: str, *, mode: str = "enforce") -> tuple[Policy, dict[str, Truth]]:
    """A compiled policy that mostly matches ACTION."""
    spec: dict[str, Any] = {
        "mode": mode,
        "match": {"actions": [draw(st.sampled_from(["*", "pay.*", ACTION])) if not _odds(draw, 10) else "other.*"]},
        "context": {"vip": "bool"},
    }
    if not _odds(draw, 5):
        spec["require"] = draw(requires())
    if _odds(draw, 6):
        spec["profile"] = draw(st.sampled_from(["nist-aal1", "nist-aal2", "nist-aal3"]))
    conditions = [draw(CONDITIONS) for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2])))]
    spec["triggers"] = [
        {"name": f"t{index}", "when": condition.cel, "require": draw(requires())}
        for index, condition in enumerate(conditions)
    ]
    if not _odds(draw, 10):
        spec["exemptions"] = draw(exemptions())
    posture: dict[str, Any] = {}
    if draw(st.booleans()):
        for level in draw(st.sets(st.sampled_from(["ELEVATED", "HIGH", "CRITICAL"]), max_size=2)):
            posture[level] = {"exemptions": draw(_TIGHTER)}
            if draw(st.booleans()):
                posture[level]["require"] = draw(requires())
    spec["posture"] = posture
    document = {
        "apiVersion": "sidestep.dev/v1",
        "kind": "Policy",
        "metadata": {"name": name, "tenant": "acme"},
        "spec": spec,
    }
    truths = {f"{name}/t{index}": condition.truth for index, condition in enumerate(conditions)}
    return compile_policy(json.dumps(document), 1), truths


def grant_classes(name: str) -> st.SearchStrategy[GrantClass]:
    """A class that mostly allows what there is."""
    return st.builds(
        GrantClass,
        id=st.just(name),
        ceiling=st.builds(Ceiling, st.just("phrh") | ACRS, st.sampled_from([30.0, 30.0, 300.0])),
        max_validity_s=st.sampled_from([3600.0, 3600.0, 1.0]),
        review_every_s=st.sampled_from([None, None, 3600.0]),
        approvals=st.sampled_from([0, 0, 1, 2]),
        condition_required=st.sampled_from([False, False, False, True]),
        scopes=st.sampled_from([frozenset()] * 3 + [frozenset({GrantScope.SUBJECT, GrantScope.DEVICE})]),
    )


COUNTS = [0, 1, 1, 1, 1, 1, 2, 2, 2, 3]


@st.composite
def ruled(draw: st.DrawFn, least: int = 0) -> Ruled:
    """A tenant with `least` to three policies."""
    made = [draw(policies(f"p{index}")) for index in range(draw(st.sampled_from(COUNTS[least:])))]
    edges = draw(
        st.sampled_from([[("phrh", "nist-aal3")]] * 2 + [[("phrh", "nist-aal3"), ("phr", "nist-aal2")]] * 2 + [[]])
    )
    compiled = tuple(policy for policy, _ in made)
    classes = [draw(grant_classes(name)) for name in ("default", "other")] if _odds(draw, 3) else []
    rules = TenantRules(
        compiled,
        order=AcrOrder(edges),
        risk_ceiling=draw(st.none() | st.just(60.0)),
        clock_skew_s=30.0,
        cool_off_s=COOL_OFF_S,
        classes=classes[_odds(draw, 4) :],
    )
    return Ruled(rules, {name: truth for _, truths in made for name, truth in truths.items()}, compiled)


TIMES = st.none() | AGO_S.map(lambda ago: NOW - ago)
AUTHENTICATIONS = st.builds(
    Authentication,
    ACRS | st.just(""),
    TIMES,
    st.sampled_from([Evidence.VERIFIED, Evidence.VERIFIED, Evidence.ASSERTED]),
    st.sampled_from([(), ("pwd", "otp"), ("pwd", "sms"), ("pwd", "otp", "sms"), ("hwk", "user")]),
)
DEVICES = st.builds(
    Device,
    presented=st.just(True),
    binding=st.sampled_from(Binding),
    id=st.just("d1"),
    trust=st.sampled_from([0.5, 0.85, 0.95, 1.0]),
    validated_at=TIMES,
    authentications=st.lists(AUTHENTICATIONS, max_size=2).map(tuple),
    block=st.sampled_from([DeviceBlock.NONE] * 12 + list(DeviceBlock)),
    revalidate_draw=st.sampled_from([0.0, 0.5, 1.0]),
).map(lambda d: replace(d, trust=0.0, validated_at=None, authentications=()) if d.binding is Binding.UNKNOWN else d)
SESSIONS = st.builds(
    Session,
    presented=st.sampled_from([True] * 9 + [False]),
    revoked=st.sampled_from([False] * 11 + [True]),
    token=st.sampled_from([TokenState.VERIFIED] * 8 + list(TokenState)),
    proved=st.booleans(),
    started_at=TIMES,
    last_active_at=TIMES,
)
# The logins of 300 and 301 s ago: during a cool-off, and one just at its end.
EVENTS = st.sampled_from(
    [None] * 6
    + [NOW - ago for ago in (5.0, COOL_OFF_S - 1, COOL_OFF_S, 300.0 + COOL_OFF_S / 2, 300.0 + COOL_OFF_S, 5000.0)]
)
SUBJECTS = st.builds(
    Subject,
    known=st.sampled_from([True, True, True, False]),
    disabled=st.sampled_from([False] * 11 + [True]),
    methods=st.sampled_from([(), ("webauthn",), ("totp", "push")]),
    recovered_at=EVENTS,
    sim_changed_at=EVENTS,
    authenticator_changed_at=EVENTS,
    failed_attempts=st.none() | st.sampled_from([0, 0, 1, 2, 5]),
)
RISKS = st.builds(
    combine,
    st.lists(st.builds(Signal, st.sampled_from(KINDS), st.sampled_from([20.0, 40.0, 60.0])), max_size=2),
    st.sampled_from([(), (), (), (), ("network",), ("device",)]),
)
GRANTS = st.builds(
    Grant,
    id=st.sampled_from(["g1", "g2", "g3", "g4"]),
    scope=st.sampled_from(GrantScope),
    actions=st.sampled_from([("*",), ("*",), ("pay.*",), (ACTION, "other"), ("other",)]),
    ceiling_acr=st.just("phrh") | ACRS,
    ceiling_max_age_s=st.sampled_from([30.0, 30.0, 30.0, 300.0, 43200.0]),
    active=st.sampled_from([True] * 6 + [False]),
    start_at=st.sampled_from([None, None, None, NOW, NOW, NOW - 60, NOW - 60, NOW + 1]),
    expire_at=st.sampled_from([NOW + 1] * 6 + [NOW, None]),
    condition=st.sampled_from([""] * 8 + list(_GRANT_CONDITIONS)),
    spot_draw=st.sampled_from([0.1, 0.25, 0.5, 0.99]),
    grant_class=st.sampled_from(["default"] * 3 + ["other", "other", "unknown"]),
    review_at=st.sampled_from([None, None, NOW + 1, NOW + 1, NOW]),
    approvals=st.integers(0, 2),
)
VALUES: st.SearchStrategy[dict[str, Scalar]] = st.fixed_dictionaries(
    {},
    optional={
        "context.amount.value": st.sampled_from([50.0, 100.0, 150.0, 1, "much"]),
        "context.country": st.sampled_from(["DE", "FR"]),
        "context.asn": st.sampled_from([1, 2]),
        "context.vip": st.booleans(),
    },
)


_DATA = st.sampled_from(
    [Data(1, 1, 1, 1, 1.0, Staleness.FRESH)] * 7
    + [Data(1, 1, 1, 1, 400.0, Staleness.SOFT), Data(), Data(1, 1, 1, 1, 1.0, Staleness.FRESH, behind=True)]
    + [Data(1, 1, 1, 1, 1.0, Staleness.FRESH, clock_off=True)]
)


@st.composite
def many_facts(draw: st.DrawFn) -> Facts:
    """Facts on which most parts are good and a few are not."""
    good_device = Device(
        True, Binding.BOUND, "d1", 1.0, NOW - 10, (Authentication("phrh", NOW - 10, Evidence.VERIFIED),)
    )
    good_session = Session(True, False, TokenState.VERIFIED, "", True, NOW - 20, NOW - 5)
    return Facts(
        now=NOW,
        tenant="acme",
        action=ACTION,
        data=draw(_DATA),
        posture=draw(st.sampled_from([Posture.LOW] * 4 + list(Posture))),
        posture_changed_at=draw(st.sampled_from([None, None, NOW - 40, NOW - 4000])),
        exemptions_off=_odds(draw, 12),
        journal_full=_odds(draw, 12),
        subject=draw(SUBJECTS) if _odds(draw, 4) else Subject(True, failed_attempts=0),
        device=draw(DEVICES) if _odds(draw, 4) else Device() if _odds(draw, 8) else good_device,
        session=draw(SESSIONS) if _odds(draw, 4) else good_session,
        authentications=tuple(draw(st.lists(AUTHENTICATIONS, max_size=3))),
        risk=draw(RISKS) if _odds(draw, 4) else combine(()),
        grants=tuple({grant.id: grant for grant in draw(st.lists(GRANTS, min_size=1, max_size=3))}.values())
        if not _odds(draw, 6)
        else (),
        values=draw(VALUES)
        if _odds(draw, 4)
        else {"context.amount.value": 50.0, "context.country": "DE", "context.vip": True},
    )
