"""Decision: what `decide` answers, complete enough to explain, record and compare with a replay."""

from __future__ import annotations

import msgspec

from engine.facts import Evidence, Symbol


class Outcome(Symbol):
    """What the caller should do."""

    ALLOW = "ALLOW"
    STEP_UP = "STEP_UP"
    DENY = "DENY"


class Basis(Symbol):
    """What the outcome rests on."""

    NOT_REQUIRED = "NOT_REQUIRED"
    ASSURANCE_SATISFIED = "ASSURANCE_SATISFIED"
    EXEMPTION_GRANT = "EXEMPTION_GRANT"
    CHALLENGE = "CHALLENGE"
    BLOCKED = "BLOCKED"
    FAIL_SAFE = "FAIL_SAFE"


class Code(Symbol):
    """Detailed reason codes. For the journal and for callers that may diagnose; never for the end user."""

    # Step 1
    NO_POLICY = "NO_POLICY"
    # Step 2
    SUBJECT_DISABLED = "SUBJECT_DISABLED"
    DEVICE_REVOKED = "DEVICE_REVOKED"
    DEVICE_QUARANTINED = "DEVICE_QUARANTINED"
    DEVICE_NOT_EXCLUDED = "DEVICE_NOT_EXCLUDED"
    SESSION_REVOKED = "SESSION_REVOKED"
    TOKEN_INVALID = "TOKEN_INVALID"  # noqa: S105
    TOKEN_MISMATCH = "TOKEN_MISMATCH"  # noqa: S105
    # Step 3
    TRIGGER_FIRED = "TRIGGER_FIRED"
    # The condition could not be evaluated, which counts as fired.
    TRIGGER_ERROR = "TRIGGER_ERROR"
    POSTURE_REQUIRES = "POSTURE_REQUIRES"
    RISK_CEILING = "RISK_CEILING"
    GUARD_RAISED = "GUARD_RAISED"
    SESSION_MISSING = "SESSION_MISSING"
    DATA_HARD_STALE = "DATA_HARD_STALE"
    BEHIND_MIN_REVISION = "BEHIND_MIN_REVISION"
    DEADLINE = "DEADLINE"
    NOTHING_REQUIRED = "NOTHING_REQUIRED"
    # Step 4
    REQUIREMENT_MET = "REQUIREMENT_MET"
    NO_AUTHENTICATION = "NO_AUTHENTICATION"
    ACR_UNMET = "ACR_UNMET"
    AUTHENTICATION_TOO_OLD = "AUTHENTICATION_TOO_OLD"
    AUTHENTICATION_IN_FUTURE = "AUTHENTICATION_IN_FUTURE"
    AUTHENTICATED_BEFORE_EVENT = "AUTHENTICATED_BEFORE_EVENT"
    EVIDENCE_NOT_VERIFIED = "EVIDENCE_NOT_VERIFIED"
    SESSION_IDLE = "SESSION_IDLE"
    # Step 5
    GRANT_APPLIED = "GRANT_APPLIED"
    # An account recovery, SIM change or new authenticator is too recent.
    COOL_OFF = "COOL_OFF"
    NO_EXEMPTIONS = "NO_EXEMPTIONS"
    EXEMPTIONS_OFF = "EXEMPTIONS_OFF"
    POSTURE_FORBIDS = "POSTURE_FORBIDS"
    DATA_SOFT_STALE = "DATA_SOFT_STALE"
    # The clock is too far from the control plane's.
    CLOCK_OFFSET = "CLOCK_OFFSET"
    JOURNAL_FULL = "JOURNAL_FULL"
    RATE_LIMITED = "RATE_LIMITED"
    NOT_WAIVABLE = "NOT_WAIVABLE"
    NO_GRANT = "NO_GRANT"
    GRANT_INACTIVE = "GRANT_INACTIVE"
    GRANT_NOT_YET_VALID = "GRANT_NOT_YET_VALID"
    GRANT_EXPIRED = "GRANT_EXPIRED"
    GRANT_REVIEW_OVERDUE = "GRANT_REVIEW_OVERDUE"
    # Its class: there is none such, or the class wants what the grant does not have.
    GRANT_CLASS_UNKNOWN = "GRANT_CLASS_UNKNOWN"
    GRANT_NOT_APPROVED = "GRANT_NOT_APPROVED"
    GRANT_CLASS_SCOPE = "GRANT_CLASS_SCOPE"
    GRANT_CLASS_CONDITION = "GRANT_CLASS_CONDITION"
    GRANT_CLASS_BUDGET = "GRANT_CLASS_BUDGET"
    GRANT_OTHER_ACTION = "GRANT_OTHER_ACTION"
    GRANT_CONDITION = "GRANT_CONDITION"
    CEILING_EXCEEDED = "CEILING_EXCEEDED"
    RECOGNISED_CEILING_EXCEEDED = "RECOGNISED_CEILING_EXCEEDED"
    GRANT_CEILING_EXCEEDED = "GRANT_CEILING_EXCEEDED"
    CLASS_CEILING_EXCEEDED = "CLASS_CEILING_EXCEEDED"
    IDENTITY_TOO_WEAK = "IDENTITY_TOO_WEAK"
    DEVICE_NOT_TRUSTED = "DEVICE_NOT_TRUSTED"
    # It was trusted enough when it was last validated.
    DEVICE_TRUST_DECAYED = "DEVICE_TRUST_DECAYED"
    DEVICE_REVALIDATION_DUE = "DEVICE_REVALIDATION_DUE"
    SESSION_NOT_SOUND = "SESSION_NOT_SOUND"
    RISK_TOO_HIGH = "RISK_TOO_HIGH"
    CLASS_SUSPENDED = "CLASS_SUSPENDED"
    SPOT_CHECK = "SPOT_CHECK"
    # Of the period nothing, or too little, is left for this use.
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    # The worker holds no slice that covers the use; there may be one to be had.
    BUDGET_NO_LEASE = "BUDGET_NO_LEASE"
    BUDGET_AMOUNT_MISSING = "BUDGET_AMOUNT_MISSING"
    BUDGET_AMOUNT_NEGATIVE = "BUDGET_AMOUNT_NEGATIVE"
    BUDGET_CURRENCY = "BUDGET_CURRENCY"
    BUDGET_PER_USE = "BUDGET_PER_USE"
    # The last strong authentication is too long ago, or not known.
    BUDGET_ELAPSED = "BUDGET_ELAPSED"


class Reason(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One reason, with the clause or grant it is about: `TRIGGER_FIRED payments/high-value`."""

    code: Code
    clause: str = ""

    def __str__(self) -> str:
        return f"{self.code.value} {self.clause}" if self.clause else self.code.value


class Requirement(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """All clauses together: every acr, the shortest age, the latest event, the strictest evidence."""

    acrs: tuple[str, ...] = ()
    max_age_s: float | None = None
    max_idle_s: float | None = None
    authenticated_after: float | None = None
    evidence: Evidence | None = None


class Challenge(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What to ask of the user. `invalid_token`: log in again (RFC 6750), instead of stepping up (RFC 9470)."""

    # Method ids, strongest first.
    methods: tuple[str, ...] = ()
    # Acceptable acr values, preferred first.
    acr_values: tuple[str, ...] = ()
    max_age_s: int | None = None
    invalid_token: bool = False


class Check(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One measured value beside its threshold."""

    name: str
    passed: bool
    measured: str
    threshold: str


class Factor(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One of identity, device, session, risk. `score`: see engine.factors; None if it could not be measured."""

    name: str
    passed: bool
    score: float | None = None


class Shadow(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What the answer would have been with an observed policy enforced."""

    policy: str
    outcome: Outcome
    basis: Basis


class Spend(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a decision spends of a grant's budget. The record it stands in is the spend."""

    grant: str
    # As in `engine.facts.BudgetHeld`: whose slice, which, of which period.
    holder: str
    slice: int
    period: int
    uses: int = 1
    # Billionths of `currency`; 0 where amounts do not count.
    nanos: int = 0
    currency: str = ""
    # What is left after it, as far as the worker knows; None: not limited.
    left_uses: int | None = None
    left_nanos: int | None = None
    # When the time since the last strong authentication runs out; None: it is not limited.
    expires_at: float | None = None


class SpotCheck(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """That nothing but a spot check kept an exemption back: what would have been by this grant, had it not been drawn."""

    # Grant id, and the name of its class.
    grant: str
    grant_class: str
    # 0-1, the chance that this had to happen; and the draw, the same for all decisions that are one sample.
    rate: float
    draw: float


class Decision(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The answer. A grant never changes `achieved_acr`; what it waived is in `waived_acrs`."""

    outcome: Outcome
    basis: Basis
    reasons: tuple[Reason, ...]
    requirement: Requirement = Requirement()
    achieved_acr: str = ""
    waived_acrs: tuple[str, ...] = ()
    challenge: Challenge | None = None
    # Grant id.
    grant: str = ""
    # `name@version` of the policies that applied.
    policies: tuple[str, ...] = ()
    factors: tuple[Factor, ...] = ()
    shadows: tuple[Shadow, ...] = ()
    # Of the budget of `grant`; None: it has none.
    spend: Spend | None = None
    spot_check: SpotCheck | None = None
