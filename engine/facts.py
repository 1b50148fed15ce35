"""Facts: everything one decision depends on, looked up and normalised, in one immutable value.

`sidecar.gather` makes them, `engine.decide` reads them, the journal keeps them, and a replay decides on them again. They hold
derived values only: no addresses, no tokens, no raw fingerprint. `None` means "not known", which is never favourable.

Times are seconds since the Unix epoch, durations seconds, scores 0-100 unless said otherwise.
"""

from __future__ import annotations

from enum import Enum

import msgspec

# What a CEL condition can read from the request.
Scalar = bool | int | float | str


class Symbol(Enum):
    """An enumeration whose members hash by identity. They are singletons, and Enum's own hash runs in Python."""

    __hash__ = object.__hash__


class Evidence(Symbol):
    """Whether a claim was proved (`verified`: by a token or key) or is the caller's word (`asserted`)."""

    ASSERTED = "asserted"
    VERIFIED = "verified"


class Staleness(Symbol):
    """How far the data's age has passed the configured limits."""

    FRESH = "fresh"
    SOFT = "soft"
    HARD = "hard"


class Posture(Symbol):
    """The tenant's threat level, in rising order."""

    LOW = "LOW"
    ELEVATED = "ELEVATED"
    HIGH = "HIGH"
    CRITICAL = "CRITICAL"


class Binding(Symbol):
    """How surely the request's device is one known for this subject."""

    UNKNOWN = "unknown"
    RECOGNISED = "recognised"
    BOUND = "bound"


class DeviceBlock(Symbol):
    """Whether a blocked device of the subject is in use. NOT_EXCLUDED: the evidence is too thin to rule one out."""

    NONE = "none"
    QUARANTINED = "quarantined"
    REVOKED = "revoked"
    NOT_EXCLUDED = "not_excluded"


class TokenState(Symbol):
    """What became of the request's token."""

    ABSENT = "absent"
    VERIFIED = "verified"
    INVALID = "invalid"
    MISMATCH = "mismatch"


class GrantScope(Symbol):
    """Whom a grant is for, narrowest first."""

    SUBJECT = "subject"
    DEVICE = "device"
    ROLE = "role"


class Authentication(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One past authentication event. Its fields belong together."""

    acr: str
    # None: no usable time, infinitely old.
    at: float | None = None
    evidence: Evidence = Evidence.ASSERTED
    amr: tuple[str, ...] = ()
    issuer: str = ""


class Data(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The data the decision rests on."""

    epoch: int = 0
    revision: int = 0
    bulk_epoch: int = 0
    bulk_revision: int = 0
    # Since the control plane last confirmed it; None: not known.
    age_s: float | None = None
    staleness: Staleness = Staleness.HARD
    # The caller's min_revision was not reached in time.
    behind: bool = False
    # The machine's clock is more than 30 s off the control plane's signed time, or that ought to be known and is not.
    clock_off: bool = False


class Subject(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The user as the control plane knows them, and the roles a verified token adds."""

    known: bool = False
    disabled: bool = False
    roles: tuple[str, ...] = ()
    # There may be more of them: no token was shown, or some could not be kept. Conditions then cannot read them.
    roles_partial: bool = False
    methods: tuple[str, ...] = ()
    # When the account was last recovered, the SIM last changed, an authenticator last added; None: never.
    recovered_at: float | None = None
    failed_attempts: int | None = None
    sim_changed_at: float | None = None
    authenticator_changed_at: float | None = None


class Device(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The device in use, compared with those registered for the subject."""

    # The request carried device evidence.
    presented: bool = False
    binding: Binding = Binding.UNKNOWN
    # Registered id of the device it was found to be; empty if unknown.
    id: str = ""
    # 0-1: 1 for a key proof, the similarity for a fingerprint.
    trust: float = 0.0
    validated_at: float | None = None
    # What past sessions proved on it.
    authentications: tuple[Authentication, ...] = ()
    block: DeviceBlock = DeviceBlock.NONE
    # 0-1, from a keyed hash of tenant and device: which share of the policy's jitter brings its revalidation forward, so that
    # devices registered together do not come due together.
    revalidate_draw: float = 0.0


class Session(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The session in use."""

    # The request names a session, by id or in a token.
    presented: bool = False
    revoked: bool = False
    token: TokenState = TokenState.ABSENT
    # From the closed set of sidecar.gather.tokens; empty if the token is fine or absent.
    token_detail: str = ""
    # A DPoP proof came with a token bound to its key, and both verified.
    proved: bool = False
    started_at: float | None = None
    last_active_at: float | None = None


class Signal(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A risk signal that applies to this request; `score` is already weighted by confidence."""

    kind: str
    score: float
    source: str = ""


class Risk(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Risk per kind of signal and combined (engine.risk). None: could not be checked."""

    score: float | None = None
    network: float | None = None
    asn: float | None = None
    country: float | None = None
    subject: float | None = None
    device: float | None = None
    session: float | None = None
    signals: tuple[Signal, ...] = ()


class Amount(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The amount the action is about, exact. Beyond 64 bits it is as far as they go (`engine.money`)."""

    # ISO 4217.
    currency: str
    # Billionths of a unit.
    nanos: int


class BudgetHeld(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What this worker may spend of a subject's use of a grant (`engine.escrow.Left`). Amounts in billionths."""

    # The holder's id, and its own number for this account and period: with a decision's spend they say whose it is.
    holder: str
    slice: int
    # Number of the period, and the strong authentication it began with; None: none is known.
    period: int
    started_at: float | None = None
    # Left of the slice.
    uses: int = 0
    nanos: int = 0
    # Of what nobody held when the holder last heard; None: not known, or too long ago.
    left_uses: int | None = None
    left_nanos: int | None = None
    # Of the slice's amounts; empty if there are none.
    currency: str = ""


class Budget(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A grant's limits since the subject's last verified strong authentication. None: not limited. Amounts in billionths."""

    max_uses: int | None = None
    max_nanos: int | None = None
    max_nanos_per_use: int | None = None
    # Of the amounts.
    currency: str = ""
    max_elapsed_s: float | None = None
    # None: no slice is held, and nothing is known of what there is.
    held: BudgetHeld | None = None

    @property
    def counts_amounts(self) -> bool:
        """Whether a use needs an amount."""
        return self.max_nanos is not None or self.max_nanos_per_use is not None


class Grant(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An exemption grant whose scope (subject, device or role) covers this request."""

    id: str
    scope: GrantScope
    actions: tuple[str, ...]
    ceiling_acr: str
    ceiling_max_age_s: float
    active: bool = False
    start_at: float | None = None
    # None: without end, which no grant may be; it does not apply.
    expire_at: float | None = None
    condition: str = ""
    # 0-1, uniform, from a keyed hash of tenant, subject, device, grant and time bucket: a retry does not redraw.
    spot_draw: float = 0.0
    # As engine.classes.class_name has it; the rules say what the class bounds.
    grant_class: str = "default"
    # From then on it does not apply until somebody has reviewed it. None: no review was set.
    review_at: float | None = None
    # How many people approved it, the requester not counted.
    approvals: int = 0
    # None: it may be used without limit.
    budget: Budget | None = None
    # The breaker of its class is open, or how it stands cannot be told.
    class_suspended: bool = False
    # 0-1: the least share of exemptions that its class wants drawn for a spot check.
    class_spot_check_rate: float = 0.0


class Finding(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a guard found about this subject on this device (sidecar.guard)."""

    # Of the guard: `impossible-travel`.
    name: str
    # 0-1.
    confidence: float
    # What exactly, of a closed set: `LOCATION_MISSING`.
    code: str
    # Time of the latest evidence: an authentication before it proves nothing against it.
    since: float


class Candidate(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A further device that the evidence fits, with what else depends on which device it is."""

    device: Device
    risk: Risk
    grants: tuple[Grant, ...] = ()
    guards: tuple[Finding, ...] = ()


class Facts(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """All of the above for one request at one instant."""

    now: float
    tenant: str
    action: str
    data: Data = Data()
    posture: Posture = Posture.CRITICAL
    posture_changed_at: float | None = None
    # The kill switch.
    exemptions_off: bool = False
    # The journal is at its bound: no exemption may be granted that could not be recorded.
    journal_full: bool = False
    subject: Subject = Subject()
    device: Device = Device()
    session: Session = Session()
    # Of the session, in the order given.
    authentications: tuple[Authentication, ...] = ()
    risk: Risk = Risk()
    grants: tuple[Grant, ...] = ()
    # Devices the evidence fits less well than `device`. The answer is the kindest over all of them: leaving components out
    # of a request could always single one of them out.
    candidates: tuple[Candidate, ...] = ()
    # Request values that conditions of this tenant read, by CEL name (`context.amount.value`). Absent ones are absent.
    values: dict[str, Scalar] = {}
    # Known only where a grant's budget counts amounts.
    amount: Amount | None = None
    # Findings in force, by name.
    guards: tuple[Finding, ...] = ()
    # The rate limit that was exceeded (`subject`, `device`, `caller`): no exemption applies. Empty: none.
    rate_limited: str = ""
