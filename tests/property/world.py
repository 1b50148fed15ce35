"""Random store contents and random requests about them: a real LMDB store, filled by deltas as sync fills it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from sidestep.v1 import decision_pb2, resources_pb2

from engine.decide import decide
from engine.decision import Decision
from engine.escrow import Account
from engine.facts import BudgetHeld, Facts
from engine.fingerprint import hash_component, parse_version
from engine.money import NANOS
from engine.names import Collection, Lane, signal_id
from engine.policy import parse_policy
from engine.rules import TenantRules
from sidecar.clock import Clock
from sidecar.gather.gatherer import GatherConfig, Gathered, Gatherer
from sidecar.store.reader import Reader
from sidecar.store.writer import Writer
from tests.fakes.history import History
from tests.fakes.issuer import AUDIENCE, SigningKey
from tests.fakes.store import load

NOW = 1_800_000_000.0
ISSUER = "https://id.acme.example"
URI = "https://api.acme.example/pay"
KEY = SigningKey(kid="k1")
DEVICE_KEYS = {name: SigningKey(kid=name) for name in ("laptop", "phone", "stranger")}
SECRET = b"f" * 32
Records = dict[tuple[int, str], bytes]

FINGERPRINTS: dict[str, dict[str, str]] = {
    name: {
        "os": os,
        "platform": platform,
        "browser": browser,
        "browser_version": version,
        "canvas": f"canvas-{name}",
        "webgl": f"webgl-{name}",
        "audio": "a",
        "fonts": f"fonts-{name}",
        "timezone": "Europe/Berlin",
        "language": "de",
    }
    for name, os, platform, browser, version in (
        ("laptop", "macOS", "arm", "firefox", "126"),
        ("phone", "Android", "arm", "chrome", "126.0.1"),
        ("tablet", "macOS", "arm", "safari", "17"),
    )
}
# Two of a kind: what the laptop shows fits its twin as well, and the other way round.
FINGERPRINTS["twin"] = FINGERPRINTS["laptop"] | {"audio": "b", "fonts": "fonts-twin"}

EXEMPTIONS: dict[str, Any] = {
    "ceiling": {"acr": "nist-aal3", "maxAge": "5m"},
    "recognisedCeiling": {"acr": "nist-aal2", "maxAge": "5m"},
    "identity": {"minAcrWithin": {"acr": "phr", "within": "30d"}, "maxFailures": 3},
    "device": {"minTrust": 0.85, "revalidateEvery": "30d"},
    "session": {"maxAge": "24h", "maxIdle": "1h"},
    "risk": {"maxScore": 30},
}
_TRIGGERS: dict[str, dict[str, Any]] = {
    "unknown-device": {"when": "!device.known", "require": {"acr": "phr", "maxAge": "5m"}},
    "high-value": {
        "when": "context.amount.value > 100.0 || context.amount.currency != 'EUR'",
        "require": {"acr": "phr", "maxAge": "5m"},
    },
    "flagged": {"when": "risk.network >= 40.0 || risk.device >= 40.0", "require": {"acr": "phr", "waivable": True}},
    "abroad": {"when": "context.country != 'DE'", "require": {"acr": "nist-aal2", "waivable": True}},
    "channel": {"when": "context.channel == 'api' && !context.vip", "require": {"acr": "phr"}},
    "account": {"when": "resource.type == 'account' && resource.id != 'a1'", "require": {"acr": "phr"}},
    "idle": {"when": "session.idle_s > 600.0 || session.age_s > 7200.0", "require": {"acr": "nist-aal2"}},
    "asn": {"when": "context.asn == 64500", "require": {"acr": "phr"}},
}


def holdings(account: Account) -> BudgetHeld:
    """What is held of any budget: for some amounts enough, for others not."""
    return BudgetHeld("h", 0, 1, NOW - 60.0, uses=1, nanos=75 * NANOS, left_uses=0, left_nanos=0)


class World(NamedTuple):
    """What a store holds, by lane."""

    urgent: Records
    bulk: Records


def timestamp(at: float) -> Timestamp:
    return Timestamp(seconds=int(at // 1), nanos=int(at % 1 * 1e9))


@cache
def policy(name: str, spec: str) -> bytes:
    """A stored policy; `spec` is JSON."""
    source = {
        "apiVersion": "sidestep.dev/v1",
        "kind": "Policy",
        "metadata": {"name": name, "tenant": "acme"},
        "spec": json.loads(spec),
    }
    return resources_pb2.Policy(document=parse_policy(json.dumps(source)).document, version=1).SerializeToString()


@st.composite
def _policies(draw: st.DrawFn) -> Records:
    """One or two policies; some accept the caller's word, some require nothing unless a trigger fires."""
    made: Records = {}
    for index in range(draw(st.sampled_from([1, 1, 1, 2]))):
        base = st.sampled_from(
            [
                {"acr": "nist-aal2", "maxAge": "12h"},
                {"acr": "nist-aal2", "maxAge": "12h"},
                {"acr": "nist-aal2"},
                {"acr": "nist-aal1", "evidence": "asserted"},
                {"maxAge": "1h", "maxIdle": "10m", "evidence": "asserted"},
                {"acr": "phr", "maxAge": "1h"},
                {},
            ]
        )
        names = draw(st.sets(st.sampled_from(sorted(_TRIGGERS)), max_size=3)) if draw(st.booleans()) else set()
        spec: dict[str, Any] = {
            "match": {"actions": ["*"]},
            "context": {"channel": "string", "vip": "bool"},
            "require": draw(base),
            "triggers": [{"name": name, **_TRIGGERS[name]} for name in sorted(names)],
        }
        if draw(st.integers(0, 5)) < 5:
            spec["exemptions"] = dict(EXEMPTIONS)
            if draw(st.booleans()):
                spec["exemptions"]["session"] = {**EXEMPTIONS["session"], "evidence": "asserted"}
        made[Collection.POLICIES, f"p{index}"] = policy(f"p{index}", json.dumps(spec))
    return made


_SETTINGS = resources_pb2.Settings(
    acr_edges=[resources_pb2.AcrEdge(higher="phr", lower="nist-aal2")],
    issuers=[resources_pb2.Issuer(issuer=ISSUER, audiences=[AUDIENCE], max_acrs=["phrh", "nist-aal3"])],
).SerializeToString()
KEYS: Records = {
    (Collection.SETTINGS, "default"): _SETTINGS,
    (Collection.KEYS, "k1"): resources_pb2.Key(
        kind=resources_pb2.KEY_KIND_ISSUER, issuer=ISSUER, jwk=json.dumps(KEY.jwk)
    ).SerializeToString(),
    (Collection.KEYS, "fp"): resources_pb2.Key(
        kind=resources_pb2.KEY_KIND_FINGERPRINT, secret=SECRET
    ).SerializeToString(),
    (Collection.KEYS, "t"): resources_pb2.Key(kind=resources_pb2.KEY_KIND_TENANT, secret=SECRET).SerializeToString(),
}


def grants() -> Records:
    def grant(**scope: str) -> bytes:
        made = resources_pb2.Grant(
            state=resources_pb2.GRANT_STATE_ACTIVE,
            actions=["*"],
            expire_time=timestamp(NOW + 3600),
            ceiling=resources_pb2.Requirement(acr="nist-aal3"),
            condition="context.amount.value <= 100.0" if "role" in scope else "",
        )
        made.ceiling.max_age.seconds = 300
        for name, value in scope.items():
            setattr(made, name, value)
        return made.SerializeToString()

    budgeted = resources_pb2.Grant.FromString(grant(subject="alice"))
    budgeted.budget.max_count = 5
    budgeted.budget.max_amount.CopyFrom(resources_pb2.Amount(currency="EUR", units=500))
    budgeted.budget.max_per_use.CopyFrom(resources_pb2.Amount(currency="EUR", units=100))
    return {
        (Collection.GRANTS, "by-budget"): budgeted.SerializeToString(),
        (Collection.GRANTS, "by-subject"): grant(subject="alice"),
        (Collection.GRANTS, "by-role"): grant(role="staff"),
        (Collection.GRANTS, "by-laptop"): grant(device="laptop"),
        (Collection.GRANTS, "by-twin"): grant(device="twin"),
    }


def registered(name: str, validated_at: float | None, jkt: str = "", shown: dict[str, str] | None = None) -> bytes:
    """A device of alice's, with what it looked like; nothing, if `shown` is empty."""
    shown = FINGERPRINTS[name] if shown is None else shown
    device = resources_pb2.Device(subject="alice", key_id="fp", jkt=jkt)
    for component, value in shown.items():
        if component.endswith("_version"):
            device.versions[component] = parse_version(value) or 0
        else:
            device.components[component] = hash_component(SECRET, component, value)
    if validated_at is not None:
        device.validate_time.CopyFrom(timestamp(validated_at))
        device.authentications.add(acr="phr", auth_time=timestamp(validated_at))
    return device.SerializeToString()


DEVICES: Records = {
    (Collection.DEVICES, "laptop"): registered("laptop", NOW - 86400, DEVICE_KEYS["laptop"].thumbprint),
    (Collection.DEVICES, "phone"): registered("phone", NOW - 40 * 86400, DEVICE_KEYS["phone"].thumbprint),
    (Collection.DEVICES, "tablet"): registered("tablet", NOW - 86400),
    (Collection.DEVICES, "twin"): registered("twin", NOW - 86400),
    (Collection.DEVICES, "bare"): registered("bare", NOW - 86400, shown={}),
}
NOT_VALIDATED = registered("laptop", NOW - 40 * 86400, DEVICE_KEYS["laptop"].thumbprint)


def signals() -> Records:
    values = {
        "ip": ["203.0.113.0/24", "2001:db8::/32"],
        "asn": ["64500"],
        "country": ["FR"],
        "subject": ["alice"],
        "device": ["laptop"],
        "session": ["s1"],
    }
    made: Records = {}
    for kind, found in values.items():
        for value in found:
            signal = resources_pb2.Signal(
                kind=f"SIGNAL_KIND_{kind.upper()}",
                value=value,
                source="feed",
                score=50,
                expire_time=timestamp(NOW + 60),
            )
            made[Collection.SIGNALS, signal_id(kind, value, "feed")] = signal.SerializeToString()
    return made


def _some(records: Records, least: int, most: int) -> st.SearchStrategy[Records]:
    return st.sets(st.sampled_from(sorted(records)), max_size=most).map(
        lambda keys: {key: records[key] for key in keys}
    )


def alice(*roles: str) -> bytes:
    """The one subject that is known."""
    return resources_pb2.Subject(
        state=resources_pb2.SUBJECT_STATE_ACTIVE, methods=["webauthn", "totp"], roles=roles
    ).SerializeToString()


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Contents of one tenant's store."""
    urgent = {**KEYS, **draw(_policies()), **draw(_some(grants(), draw(st.integers(0, 3)), 4))}
    if draw(st.integers(0, 7)) < 7:
        urgent[Collection.SUBJECTS, "alice"] = alice(*draw(st.sampled_from([[], ["staff"]])))
    for device in draw(st.sets(st.sampled_from(["laptop", "phone", "tablet", "twin", "bare", "gone"]), max_size=1)):
        if draw(st.integers(0, 3)) == 3:
            trust = draw(st.sampled_from([resources_pb2.DEVICE_TRUST_QUARANTINED, resources_pb2.DEVICE_TRUST_REVOKED]))
            state = resources_pb2.DeviceState(subject="alice", trust=trust)
            urgent[Collection.DEVICE_STATES, device] = state.SerializeToString()
    if draw(st.integers(0, 3)) == 3:
        revoked = resources_pb2.RevokedSession(subject="alice")
        urgent[Collection.REVOKED_SESSIONS, draw(st.sampled_from(["s1", "s2"]))] = revoked.SerializeToString()
    devices = draw(_some(DEVICES, 0, 4))
    if draw(st.integers(0, 7)) < 7:
        devices[Collection.DEVICES, "laptop"] = draw(
            st.sampled_from([DEVICES[Collection.DEVICES, "laptop"]] * 2 + [NOT_VALIDATED])
        )
    return World(urgent, {**devices, **draw(_some(signals(), 0, 2))})


# What the claims of a token may be, beside issuer, audience and expiry.
_TOKENS: dict[str, dict[str, Any]] = {
    "weak": {"acr": "nist-aal1", "auth_time": NOW - 60, "sid": "s1"},
    "strong": {"acr": "phr", "auth_time": NOW - 60, "sid": "s1"},
    "old": {"acr": "phr", "auth_time": NOW - 50_000, "sid": "s1"},
    "two": {
        "acr": "nist-aal2",
        "auth_time": NOW - 50_000,
        "authentications": [{"acr": "nist-aal1", "auth_time": NOW - 10}],
        "sid": "s1",
        "roles": ["staff"],
    },
    "no session": {"acr": "phr", "auth_time": NOW - 60},
    "another session": {"acr": "phr", "auth_time": NOW - 60, "sid": "s2"},
    "bound": {"acr": "nist-aal2", "auth_time": NOW - 60, "sid": "s1", "cnf": {"jkt": DEVICE_KEYS["laptop"].thumbprint}},
    "expired": {"acr": "phr", "auth_time": NOW - 60, "sid": "s1", "exp": NOW - 600},
    "bob's": {"acr": "phr", "auth_time": NOW - 60, "sid": "s1", "sub": "bob"},
}


@cache
def token(kind: str) -> str:
    """A signed session token."""
    if kind == "garbage":
        return "a.b.c"
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "exp": NOW + 600,
        "iat": NOW - 60,
        "session_started_at": NOW - 3600,
    }
    return KEY.token(claims | _TOKENS[kind])


@cache
def proof(device: str, for_token: str) -> str:
    return DEVICE_KEYS[device].proof(for_token, "POST", URI, NOW)


TIMES = st.sampled_from([-60.0, -60.5, -3600.0, -50_000.0, -1e8, 29.5, 30.5, 31.0]).map(
    lambda ago: timestamp(NOW + ago)
)


@st.composite
def _sessions(draw: st.DrawFn) -> decision_pb2.SessionEvidence:
    session = decision_pb2.SessionEvidence()
    if draw(st.integers(0, 4)):
        session.id = draw(st.sampled_from(["s1", "s1", "s2"]))
    if draw(st.booleans()):
        session.start_time.CopyFrom(draw(TIMES))
    if draw(st.booleans()):
        session.last_active_time.CopyFrom(draw(TIMES))
    for _ in range(draw(st.integers(0, 2))):
        event = session.authentications.add(acr=draw(st.sampled_from(["nist-aal1", "nist-aal2", "phr", ""])))
        if draw(st.integers(0, 3)):
            event.auth_time.CopyFrom(draw(TIMES))
        event.amr.extend(draw(st.sampled_from([[], ["pwd", "otp"]])))
    if draw(st.integers(0, 3)):
        session.token = token(draw(st.sampled_from(["weak", "weak", "strong", *_TOKENS, "garbage"])))
        if draw(st.booleans()):
            device = draw(st.sampled_from(sorted(DEVICE_KEYS)))
            session.dpop.proof = proof(device, session.token)
            session.dpop.http_method = draw(st.sampled_from(["POST", "POST", "GET"]))
            session.dpop.http_uri = URI
    return session


@st.composite
def _shown_devices(draw: st.DrawFn) -> decision_pb2.DeviceEvidence:
    device = decision_pb2.DeviceEvidence()
    if draw(st.booleans()):
        device.id = draw(st.sampled_from(["laptop", "phone", "tablet", "twin", "bare", "gone", "other"]))
    if draw(st.integers(0, 3)):
        shown = dict(FINGERPRINTS[draw(st.sampled_from(["laptop", "laptop", "phone", "tablet", "twin"]))])
        for name in draw(st.sets(st.sampled_from(sorted(shown)), max_size=2)):
            if draw(st.booleans()):
                del shown[name]
            else:
                shown[name] = draw(st.sampled_from(["other", "127", "90", "macOS"]))
        device.fingerprint.update(shown)
    return device


@st.composite
def _contexts(draw: st.DrawFn) -> decision_pb2.Context:
    context = decision_pb2.Context()
    if draw(st.integers(0, 5)):
        context.ip = draw(
            st.sampled_from(["198.51.100.1", "198.51.100.1", "203.0.113.9", "2001:db8::1", "::ffff:203.0.113.9"])
        )
    if draw(st.booleans()):
        context.asn = draw(st.sampled_from([64500, 64501, 0]))
    if draw(st.booleans()):
        context.country = draw(st.sampled_from(["DE", "FR"]))
    if draw(st.integers(0, 3)):
        context.amount.currency = draw(st.sampled_from(["EUR", "EUR", "USD"]))
        context.amount.units = draw(st.sampled_from([50, 100, 5000]))
        context.amount.nanos = draw(st.sampled_from([0, 500_000_000]))
    if draw(st.booleans()):
        context.attributes.update(
            draw(
                st.fixed_dictionaries(
                    {}, optional={"channel": st.sampled_from(["api", "web"]), "vip": st.booleans(), "n": st.just(4.5)}
                )
            )
        )
    return context


@st.composite
def requests(draw: st.DrawFn) -> decision_pb2.EvaluateRequest:
    """A request that is valid."""
    request = decision_pb2.EvaluateRequest(tenant="acme")
    request.subject.id = draw(st.sampled_from(["alice"] * 15 + ["bob"]))
    request.subject.type = "user"
    request.action.name = "pay.now"
    if draw(st.booleans()):
        request.resource.type = draw(st.sampled_from(["account", "card"]))
        request.resource.id = draw(st.sampled_from(["a1", "a2"]))
    for name, strategy in (("context", _contexts()), ("session", _sessions()), ("device", _shown_devices())):
        choice = draw(st.integers(0, 9))
        if choice < 7:
            getattr(request, name).CopyFrom(getattr(usual(), name))
        elif choice < 9:
            getattr(request, name).CopyFrom(draw(strategy))
    return request


@cache
def usual() -> decision_pb2.EvaluateRequest:
    """A weak session of alice's on her laptop: a grant can help her."""
    request = decision_pb2.EvaluateRequest()
    request.context.ip, request.context.country, request.context.asn = "198.51.100.1", "DE", 64501
    request.context.amount.currency, request.context.amount.units = "EUR", 50
    request.session.id, request.session.token = "s1", token("weak")
    request.session.last_active_time.CopyFrom(timestamp(NOW - 60))
    request.session.dpop.proof = proof("laptop", request.session.token)
    request.session.dpop.http_method, request.session.dpop.http_uri = "POST", URI
    request.device.id = "laptop"
    request.device.fingerprint.update(FINGERPRINTS["laptop"])
    return request


class Answer(NamedTuple):
    """A decision and what it was made on."""

    decision: Decision
    facts: Facts
    rules: TenantRules


class Replica:
    """A sidecar's store and gatherer; `hold` makes the store contain a world."""

    def __init__(self, data_dir: Path) -> None:
        self.clock = Clock()
        self._writer = Writer(data_dir)
        self._histories = {lane: History("acme", lane) for lane in Lane}
        for history in self._histories.values():
            load(self._writer, history)
        self._reader = Reader(data_dir)
        self._gatherer = Gatherer(GatherConfig("acme", 1e9, 1e9), holdings)
        for lane in Lane:
            self._writer.confirm("acme", lane, boottime=self.clock.boottime(), wall=self.clock.wall())

    def hold(self, world: World) -> None:
        """Applies the differences, one delta a lane."""
        for lane, wanted in ((Lane.URGENT, world.urgent), (Lane.BULK, world.bulk)):
            history = self._histories[lane]
            changes: dict[tuple[int, str], bytes | None] = {key: None for key in history.records if key not in wanted}
            changes |= {key: value for key, value in wanted.items() if history.records.get(key) != value}
            if changes:
                self._writer.apply_delta(history.commit(changes))

    def ask(self, request: decision_pb2.EvaluateRequest) -> Answer:
        """As a worker would, at NOW. Raises InvalidInputError."""
        facts, rules, *_ = self.gather(request)
        return Answer(decide(facts, rules), facts, rules)

    def gather(self, request: decision_pb2.EvaluateRequest, now: float = NOW) -> Gathered:
        """The facts at a time. Raises InvalidInputError."""
        with self._reader.view() as view:
            return self._gatherer.gather(request, view, now, clock=self.clock)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
