"""A tenant's rules: settings and compiled policies, from which plans are made and kept.

Built once per change of the tenant's settings or policies; safe to read from several threads.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.acr import AcrOrder
from engine.classes import GrantClass
from engine.clauses import Clause
from engine.cooloff import DEFAULT_COOL_OFF_S
from engine.decision import Code
from engine.facts import Evidence, Posture
from engine.methods import DEFAULT_CATALOGUE, Method
from engine.names import action_matches
from engine.plan import Plan, Policy, Shadow, build
from engine.policy import PolicyError, Problem, read_document
from engine.policy.conditions import REQUEST_VARIABLES, Condition, ConditionError, Language

DEFAULT_TOP = Clause("tenant/top", "phr", 300.0, evidence=Evidence.VERIFIED)
DEFAULT_CLOCK_SKEW_S = 30.0
MAX_CLOCK_SKEW_S = 300.0
MAX_PLANS = 4096
MAX_GRANT_CONDITIONS = 4096


def compile_policy(document: str, version: int) -> Policy:
    """A stored policy, ready to be planned. Raises PolicyError where this version cannot read or compile it."""
    spec_model = read_document(document)
    language = Language(spec_model.spec.context)
    try:
        conditions = tuple(language.compile(trigger.when) for trigger in spec_model.spec.triggers)
        canaries = tuple(language.compile(condition.when) for condition in spec_model.spec.canary_conditions)
    except ConditionError as error:
        raise PolicyError([Problem(0, 0, "spec.triggers", problem.message) for problem in error.problems]) from None
    return Policy(spec_model.metadata.name, version, spec_model.spec, language, conditions, canaries)


class TenantRules:
    """Everything `decide` needs besides the facts.

    `top`: demanded where nothing better is known. `risk_ceiling`: a combined risk at or above it adds `top`; None: off.
    `cool_off_s`: see `engine.cooloff`. `classes`: of grants; none: grants have no class.
    """

    def __init__(
        self,
        policies: Iterable[Policy] = (),
        *,
        order: AcrOrder | None = None,
        methods: Iterable[Method] = DEFAULT_CATALOGUE,
        top: Clause = DEFAULT_TOP,
        risk_ceiling: float | None = None,
        clock_skew_s: float = DEFAULT_CLOCK_SKEW_S,
        cool_off_s: float = DEFAULT_COOL_OFF_S,
        classes: Iterable[GrantClass] = (),
    ) -> None:
        self.policies = tuple(sorted(policies, key=lambda policy: policy.name))
        self.order = order or AcrOrder()
        self.catalogue = tuple(methods)
        self.methods = {method.id: method for method in self.catalogue}
        self.top = top
        self.risk_ceiling = risk_ceiling
        self.clock_skew_s = clock_skew_s
        self.cool_off_s = cool_off_s
        self.classes = {grant_class.id: grant_class for grant_class in classes}
        self.request_variables = _request_variables(self.policies)
        self.reads_resource_id = any(
            "resource.id" in c.variables for policy in self.policies for c in (*policy.conditions, *policy.canaries)
        )
        self._plans: dict[tuple[str, Posture], Plan] = {}
        self._grant_language = Language()
        self._grant_conditions: dict[str, Condition | None] = {}

    def plan(self, action: str, posture: Posture) -> Plan:
        """The plan for an action under a posture."""
        key = (action, posture)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._build(action, posture)
            # Action names come from callers: a flood of made-up ones must not grow the memory.
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def grant_condition(self, source: str) -> Condition | None:
        """A grant's compiled condition; None if it does not compile, and then the grant does not apply."""
        if source not in self._grant_conditions:
            if len(self._grant_conditions) >= MAX_GRANT_CONDITIONS:
                self._grant_conditions.clear()
            try:
                self._grant_conditions[source] = self._grant_language.compile(source)
            except ConditionError:
                self._grant_conditions[source] = None
        return self._grant_conditions[source]

    @property
    def grant_language(self) -> Language:
        """What grants' conditions can read."""
        return self._grant_language

    def _build(self, action: str, posture: Posture) -> Plan:
        matching = [
            p for p in self.policies if any(action_matches(pattern, action) for pattern in p.spec.match.actions)
        ]
        live = [policy for policy in matching if policy.spec.mode == "enforce"]
        shadows = []
        for observed in matching:
            if observed.spec.mode == "observe":
                others = [policy for policy in live if policy.name != observed.spec.replaces]
                plan = build([*others, observed], posture, self.catalogue, self.top)
                shadows.append(Shadow(observed.label, plan))
        return build(live, posture, self.catalogue, self.top)._replace(shadows=tuple(shadows))

    def top_clause(self, cause: Code) -> Clause:
        """The top requirement as a clause, with the reason it applies."""
        return self.top._replace(cause=cause)


def _request_variables(policies: Iterable[Policy]) -> frozenset[str]:
    """Names of the request values that any condition may read. Built-in ones always: grants' conditions may read them."""
    declared = {f"context.{name}" for policy in policies for name in policy.spec.context}
    return REQUEST_VARIABLES | declared
