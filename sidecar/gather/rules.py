"""A tenant's rules from its records: protobuf settings and compiled policies to what `engine.decide` reads.

The store's readers and a replay both build them here, so that a recorded decision is decided again by equal rules. Needs no
store, and none of the libraries that verify tokens.
"""

from __future__ import annotations

import logging

from sidestep.v1 import resources_pb2

from engine.acr import AcrOrder
from engine.classes import GrantClass, read_class
from engine.clauses import Clause
from engine.cooloff import DEFAULT_COOL_OFF_S
from engine.errors import InvalidInputError
from engine.facts import Evidence
from engine.methods import DEFAULT_CATALOGUE, Method
from engine.plan import Policy
from engine.registration import DEFAULT_REGISTER_WITHIN_S, MAX_REGISTER_WITHIN_S
from engine.rules import DEFAULT_CLOCK_SKEW_S, DEFAULT_TOP, MAX_CLOCK_SKEW_S, TenantRules

_log = logging.getLogger(__name__)


def tenant_rules(
    settings: resources_pb2.Settings, policies: tuple[Policy, ...] | None, order: AcrOrder | None = None
) -> TenantRules:
    """The rules that settings (empty: the tenant has none) and policies make.

    `policies` None: one of them cannot be used, so none may be trusted to be the whole rule, and the top requirement holds
    everywhere. `order`: that of these settings, if it is at hand.
    """
    methods = tuple(Method(m.id, m.acr, tuple(m.amr), m.rank) for m in settings.methods) or DEFAULT_CATALOGUE
    top = DEFAULT_TOP
    if settings.HasField("top_requirement"):
        stated = settings.top_requirement
        top = Clause(
            DEFAULT_TOP.name,
            # The control plane stores both; what is missing all the same demands no less than without a record.
            stated.acr or DEFAULT_TOP.acr,
            stated.max_age.seconds + stated.max_age.nanos / 1e9
            if stated.HasField("max_age")
            else DEFAULT_TOP.max_age_s,
            evidence=Evidence.ASSERTED if stated.evidence == resources_pb2.EVIDENCE_ASSERTED else Evidence.VERIFIED,
        )
    return TenantRules(
        policies or (),
        order=acr_order(settings) if order is None else order,
        methods=methods,
        top=top,
        risk_ceiling=settings.risk_ceiling if settings.HasField("risk_ceiling") else None,
        clock_skew_s=clock_skew_s(settings),
        cool_off_s=cool_off_s(settings),
        classes=grant_classes(settings),
    )


def grant_classes(settings: resources_pb2.Settings) -> list[GrantClass]:
    """The tenant's classes of grants. One that cannot be used whole is left out, and its grants exempt nobody."""
    classes = []
    for stated in settings.grant_classes:
        try:
            classes.append(read_class(stated))
        except InvalidInputError as error:
            _log.error("a class of grants is left out, and its grants do not apply: %s", error)
    return classes


def acr_order(settings: resources_pb2.Settings) -> AcrOrder:
    """The tenant's partial order of assurance levels."""
    try:
        return AcrOrder((edge.higher, edge.lower) for edge in settings.acr_edges)
    except InvalidInputError as error:
        # The control plane refuses cycles. Without the tenant's edges fewer levels imply others, which is the safe side.
        _log.error("acr edges cannot be used, the presets hold alone: %s", error)
        return AcrOrder()


def cool_off_s(settings: resources_pb2.Settings) -> float:
    """How long no grant applies after an account recovery, SIM change or new authenticator; never negative."""
    if not settings.HasField("cool_off"):
        return DEFAULT_COOL_OFF_S
    return max(settings.cool_off.seconds + settings.cool_off.nanos / 1e9, 0.0)


def register_within_s(settings: resources_pb2.Settings) -> float:
    """How long after an authentication its report counts for a device, 0 to MAX_REGISTER_WITHIN_S."""
    if not settings.HasField("device_register_within"):
        return DEFAULT_REGISTER_WITHIN_S
    stated = settings.device_register_within
    return min(max(stated.seconds + stated.nanos / 1e9, 0.0), MAX_REGISTER_WITHIN_S)


def clock_skew_s(settings: resources_pb2.Settings) -> float:
    """How far the clocks of issuers may be ahead, 0 to MAX_CLOCK_SKEW_S."""
    if not settings.HasField("clock_skew"):
        return DEFAULT_CLOCK_SKEW_S
    return min(max(settings.clock_skew.seconds + settings.clock_skew.nanos / 1e9, 0.0), MAX_CLOCK_SKEW_S)
