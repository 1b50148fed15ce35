"""Every rule of resources.proto that the control plane enforces, one mutation of a good record each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sidestep.v1 import resources_pb2 as pb

from controlplane.api.resources import check, complete
from engine.errors import InvalidInputError

NOW = 1_800_000_000.0
KEY_X = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
ED25519 = json.dumps({"kty": "OKP", "crv": "Ed25519", "x": KEY_X})
SOURCE = """apiVersion: sidestep.dev/v1
kind: Policy
metadata: {name: payments, tenant: acme}
spec:
  match: {actions: ["payments.*"]}
  require: {acr: nist-aal2, maxAge: 12h}
"""


def at(seconds: float) -> Any:
    record = pb.Grant()
    record.start_time.FromSeconds(int(seconds))
    return record.start_time


def grant() -> pb.Resource:
    record = pb.Grant(
        name="tenants/acme/grants/g1",
        state="GRANT_STATE_ACTIVE",
        subject="alice",
        actions=["payments.*"],
        expire_time=at(NOW),
    )
    record.ceiling.acr = "nist-aal2"
    record.ceiling.max_age.FromSeconds(3600)
    return pb.Resource(grant=record)


def subject() -> pb.Resource:
    return pb.Resource(
        subject=pb.Subject(
            name="tenants/acme/subjects/alice", state="SUBJECT_STATE_ACTIVE", roles=["staff"], methods=["totp"]
        )
    )


def device() -> pb.Resource:
    record = pb.Device(name="tenants/acme/devices/d1", subject="alice", key_id="fp1", versions={"browser_version": 126})
    record.components["os"] = bytes(16)
    return pb.Resource(device=record)


def bare_device() -> pb.Resource:
    return pb.Resource(device=pb.Device(name="tenants/acme/devices/d1", subject="alice"))


def device_state() -> pb.Resource:
    record = pb.DeviceState(name="tenants/acme/deviceStates/d1", subject="alice", trust="DEVICE_TRUST_QUARANTINED")
    return pb.Resource(device_state=record)


def revoked_session() -> pb.Resource:
    return pb.Resource(
        revoked_session=pb.RevokedSession(
            name="tenants/acme/revokedSessions/s1", subject="alice", expire_time=at(NOW + 60)
        )
    )


def issuer_key() -> pb.Resource:
    return pb.Resource(
        key=pb.Key(name="tenants/acme/keys/k1", kind="KEY_KIND_ISSUER", issuer="https://idp", jwk=ED25519)
    )


def secret_key() -> pb.Resource:
    return pb.Resource(key=pb.Key(name="tenants/acme/keys/fp1", kind="KEY_KIND_FINGERPRINT"))


def posture() -> pb.Resource:
    return pb.Resource(posture=pb.Posture(name="tenants/acme/postures/default", level="POSTURE_LEVEL_HIGH"))


def settings() -> pb.Resource:
    record = pb.Settings(name="tenants/acme/settings/default", min_similarity=0.9, risk_ceiling=80)
    record.acr_edges.add(higher="gold", lower="silver")
    record.issuers.add(issuer="https://idp", audiences=["api"], max_acrs=["phr"])
    record.methods.add(id="totp", acr="nist-aal2", amr=["otp"], rank=5)
    record.fingerprint.add(id="os", kind="KIND_EXACT", weight=10, must_match=True)
    record.top_requirement.acr = "phr"
    record.top_requirement.max_age.FromSeconds(300)
    record.clock_skew.FromSeconds(30)
    for limit in (record.rate_limits.subject, record.rate_limits.device, record.rate_limits.caller):
        limit.per_second, limit.burst, limit.hard_factor = 5.0, 20, 4.0
    grant_class = record.grant_classes.add(id="standard", approvals=1, scopes=["GRANT_SCOPE_SUBJECT"])
    grant_class.ceiling.acr = "nist-aal2"
    grant_class.ceiling.max_age.FromSeconds(3600)
    grant_class.max_validity.FromSeconds(86_400)
    grant_class.review_every.FromSeconds(3_600)
    return pb.Resource(settings=record)


def signal() -> pb.Resource:
    return pb.Resource(
        signal=pb.Signal(
            name="tenants/acme/signals/ip~203.0.113.0_24~ipsum",
            kind="SIGNAL_KIND_IP",
            value="203.0.113.0/24",
            source="ipsum",
            score=70,
            expire_time=at(NOW),
        )
    )


def policy() -> pb.Resource:
    return pb.Resource(policy=pb.Policy(name="tenants/acme/policies/payments", source=SOURCE))


GOOD = [
    grant, subject, device, device_state, revoked_session, issuer_key, secret_key, posture, settings, signal, policy,
]  # fmt: skip


@pytest.mark.parametrize("make", GOOD)
def test_a_good_record_is_accepted(make: Callable[[], pb.Resource]) -> None:
    completed = complete(check(make()), None, NOW)
    assert completed.changed


def mutate(make: Callable[[], pb.Resource], **values: Any) -> pb.Resource:
    """A good record with fields replaced; a None clears; `a__b` reaches into a message or the first of a list."""
    resource = make()
    record = getattr(resource, resource.WhichOneof("resource") or "")
    for path, value in values.items():
        target, parts = record, path.split("__")
        for part in parts[:-1]:
            target = getattr(target, part)
            if hasattr(target, "add"):
                target = target[0]
        if value is None:
            target.ClearField(parts[-1])
        elif isinstance(value, list):
            target.ClearField(parts[-1])
            getattr(target, parts[-1]).extend(value)
        elif (isinstance(value, float) and parts[-1].endswith("time")) or parts[-1] in DURATIONS:
            getattr(target, parts[-1]).FromNanoseconds(int(value * 1e9))
        elif isinstance(value, dict):
            getattr(target, parts[-1]).update(value)
        else:
            setattr(target, parts[-1], value)
    return resource


LONG = "x" * 129
DURATIONS = ("max_age", "clock_skew", "max_validity", "review_every")
BAD = [
    (grant, {"name": "tenants/acme/grants"}, "grant.name"),
    (grant, {"name": "tenants/Acme/grants/g1"}, "grant.name"),
    (grant, {"name": "tenants/acme/subjects/g1"}, "grant.name"),
    (grant, {"name": "tenants/acme/grants/a~b"}, "grant.name"),
    (grant, {"name": f"tenants/acme/grants/{LONG}"}, "grant.name"),
    (grant, {"state": 0}, "grant.state"),
    (grant, {"state": 99}, "grant.state"),
    (grant, {"subject": None}, "grant.subject"),
    (grant, {"subject": "a/b"}, "grant.subject"),
    (grant, {"role": ""}, "grant.role"),
    (grant, {"actions": []}, "grant.actions"),
    (grant, {"actions": ["pay*"]}, "grant.actions[0]"),
    (grant, {"actions": ["a.b", "a.b"]}, "grant.actions[1]"),
    (grant, {"expire_time": None}, "grant.expire_time"),
    (grant, {"start_time": NOW}, "grant.expire_time"),
    (grant, {"ceiling": None}, "grant.ceiling"),
    (grant, {"ceiling__acr": ""}, "grant.ceiling.acr"),
    (grant, {"ceiling__acr": "x" * 129}, "grant.ceiling.acr"),
    (grant, {"ceiling__max_age": None}, "grant.ceiling.max_age"),
    (grant, {"ceiling__max_age": 29.999}, "grant.ceiling.max_age"),
    (grant, {"ceiling__evidence": 7}, "grant.ceiling.evidence"),
    (grant, {"condition": "device.knwn"}, "grant.condition"),
    (grant, {"condition": "1 +"}, "grant.condition"),
    (grant, {"reason": "x" * 1025}, "grant.reason"),
    (grant, {"ticket": "x" * 1025}, "grant.ticket"),
    (grant, {"state_reason": "x" * 1025}, "grant.state_reason"),
    (grant, {"grant_class": "Standard"}, "grant.grant_class"),
    (grant, {"requester": "alice"}, "grant.requester"),
    (grant, {"approvals": [pb.Approval(actor="bob")]}, "grant.approvals"),
    (subject, {"state": 0}, "subject.state"),
    (subject, {"roles": ["a", "a"]}, "subject.roles[1]"),
    (subject, {"methods": ["totp", ""]}, "subject.methods[1]"),
    (device, {"subject": ""}, "device.subject"),
    (device, {"components": {"os": b"short"}}, "device.components[os]"),
    (device, {"key_id": ""}, "device.key_id"),
    (device, {"jkt": "abc"}, "device.jkt"),
    (device, {"fingerprint": {"os": "macOS"}}, "device.fingerprint"),
    (bare_device, {"fingerprint": {"os": ""}}, "device.fingerprint[os]"),
    (bare_device, {"fingerprint": {"os": "x" * 513}}, "device.fingerprint[os]"),
    (bare_device, {"fingerprint": {"a/b": "x"}}, "device.fingerprint"),
    (bare_device, {"fingerprint": {f"c{i}": "1" for i in range(33)}}, "device.fingerprint"),
    (device, {"versions": {f"v{i}": 1 for i in range(32)}}, "device.components"),
    (device, {"authentications": [pb.Authentication(acr="phr")] * 9}, "device.authentications"),
    (device_state, {"trust": 0}, "device_state.trust"),
    (device_state, {"subject": ""}, "device_state.subject"),
    (revoked_session, {"expire_time": None}, "revoked_session.expire_time"),
    (revoked_session, {"revoke_time": NOW + 60}, "revoked_session.expire_time"),
    (issuer_key, {"kind": 0}, "key.kind"),
    (issuer_key, {"issuer": ""}, "key.issuer"),
    (issuer_key, {"jwk": ""}, "key.jwk"),
    (issuer_key, {"jwk": "{"}, "key.jwk"),
    (issuer_key, {"jwk": "[]"}, "key.jwk"),
    (issuer_key, {"jwk": json.dumps({**json.loads(ED25519), "d": "x"})}, "key.jwk"),
    (issuer_key, {"jwk": json.dumps({**json.loads(ED25519), "kid": "k2"})}, "key.jwk.kid"),
    (issuer_key, {"jwk": json.dumps({**json.loads(ED25519), "use": "enc"})}, "key.jwk.use"),
    (issuer_key, {"jwk": json.dumps({"kty": "oct", "k": "c2VjcmV0"})}, "key.jwk"),
    (issuer_key, {"jwk": json.dumps({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"})}, "key.jwk"),
    (issuer_key, {"jwk": json.dumps({"kty": "EC", "crv": "P-256", "x": KEY_X, "y": KEY_X})}, "key.jwk"),
    (issuer_key, {"jwk": json.dumps({"kty": "OKP", "crv": "Ed25519", "x": "AA"})}, "key.jwk.x"),
    (issuer_key, {"jwk": json.dumps({"kty": "RSA", "n": KEY_X, "e": "AQAB"})}, "key.jwk.n"),
    (issuer_key, {"secret": bytes(32)}, "key.secret"),
    (issuer_key, {"start_time": NOW, "expire_time": NOW}, "key.expire_time"),
    (secret_key, {"secret": b"short"}, "key.secret"),
    (secret_key, {"issuer": "https://idp"}, "key.issuer"),
    (secret_key, {"jwk": ED25519}, "key.jwk"),
    (posture, {"level": 0}, "posture.level"),
    (posture, {"level": 5}, "posture.level"),
    (posture, {"name": "tenants/acme/postures/other"}, "posture.name"),
    (settings, {"acr_edges__higher": "silver"}, "settings.acr_edges"),
    (settings, {"acr_edges": [pb.AcrEdge(higher="nist-aal1", lower="nist-aal3")]}, "settings.acr_edges"),
    (settings, {"acr_edges__lower": ""}, "settings.acr_edges[0].lower"),
    (settings, {"issuers__audiences": []}, "settings.issuers[0].audiences"),
    (settings, {"issuers": [pb.Issuer(issuer="a", audiences=["b"])] * 2}, "settings.issuers[1]"),
    (settings, {"issuers__algorithms": ["HS256"]}, "settings.issuers[0].algorithms[0]"),
    (settings, {"issuers__algorithms": ["none"]}, "settings.issuers[0].algorithms[0]"),
    (settings, {"methods": [pb.Method(id="a", acr="b")] * 2}, "settings.methods[1]"),
    (settings, {"methods__acr": ""}, "settings.methods[0].acr"),
    (settings, {"methods__acr": 'phr", error="'}, "settings.methods[0].acr"),
    (settings, {"methods__acr": "phr\r\nX: y"}, "settings.methods[0].acr"),
    (settings, {"grant_classes__id": "No Class"}, "settings.grant_classes[0].id"),
    (settings, {"grant_classes": [pb.GrantClass()] * 2}, "settings.grant_classes[0].id"),
    (settings, {"grant_classes": [pb.GrantClass(id=f"c{n}") for n in range(65)]}, "settings.grant_classes"),
    (settings, {"grant_classes__ceiling": None}, "settings.grant_classes[0].ceiling"),
    (settings, {"grant_classes__ceiling__acr": ""}, "settings.grant_classes[0].ceiling.acr"),
    (settings, {"grant_classes__ceiling__max_age": None}, "settings.grant_classes[0].ceiling.max_age"),
    (settings, {"grant_classes__max_validity": None}, "settings.grant_classes[0].max_validity"),
    (settings, {"grant_classes__max_validity": 0.0}, "settings.grant_classes[0].max_validity"),
    (settings, {"grant_classes__review_every": -1.0}, "settings.grant_classes[0].review_every"),
    (settings, {"grant_classes__approvals": 9}, "settings.grant_classes[0].approvals"),
    (settings, {"grant_classes__scopes": [0]}, "settings.grant_classes[0].scopes[0]"),
    (settings, {"grant_classes__scopes": [9]}, "settings.grant_classes[0].scopes[0]"),
    (settings, {"fingerprint__weight": 0}, "settings.fingerprint[0].weight"),
    (settings, {"fingerprint__kind": 0}, "settings.fingerprint[0].kind"),
    (settings, {"fingerprint__max_rise": 3}, "settings.fingerprint[0].max_rise"),
    (settings, {"min_similarity": 1.01}, "settings.min_similarity"),
    (settings, {"min_similarity": float("nan")}, "settings.min_similarity"),
    (settings, {"top_requirement__acr": "phr nist-aal2"}, "settings.top_requirement.acr"),
    (settings, {"top_requirement__max_age": 10.0}, "settings.top_requirement.max_age"),
    (settings, {"risk_ceiling": 101}, "settings.risk_ceiling"),
    (settings, {"clock_skew": 300.5}, "settings.clock_skew"),
    (settings, {"rate_limits__subject__per_second": 0.0}, "settings.rate_limits.subject.per_second"),
    (settings, {"rate_limits__subject__per_second": float("nan")}, "settings.rate_limits.subject.per_second"),
    (settings, {"rate_limits__device__burst": 0}, "settings.rate_limits.device.burst"),
    (settings, {"rate_limits__caller__burst": 1_000_001}, "settings.rate_limits.caller.burst"),
    (settings, {"rate_limits__caller__hard_factor": 0.5}, "settings.rate_limits.caller.hard_factor"),
    (settings, {"clock_skew": -1.0}, "settings.clock_skew"),
    (signal, {"kind": 0}, "signal.kind"),
    (signal, {"score": 101}, "signal.score"),
    (signal, {"confidence": 101}, "signal.confidence"),
    (signal, {"expire_time": None}, "signal.expire_time"),
    (signal, {"value": "203.0.113.1/24"}, "signal.value"),
    (signal, {"value": "203.0.113.0"}, "signal.value"),
    (signal, {"value": "198.51.100.0/24"}, "signal.name"),
    (signal, {"source": "other"}, "signal.name"),
    (signal, {"kind": pb.SIGNAL_KIND_COUNTRY, "value": "de"}, "signal.value"),
    (signal, {"kind": pb.SIGNAL_KIND_ASN, "value": "007"}, "signal.value"),
    (signal, {"kind": pb.SIGNAL_KIND_ASN, "value": "4294967296"}, "signal.value"),
    (policy, {"source": " "}, "policy.source"),
    (policy, {"source": "a: b: c"}, "policy.source"),
    (policy, {"source": SOURCE.replace("name: payments", "name: other")}, "policy.source"),
    (policy, {"source": SOURCE.replace("tenant: acme", "tenant: other")}, "policy.source"),
    (policy, {"source": SOURCE.replace("require:", "rquire:")}, "policy.source"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "change", "field"), BAD, ids=lambda item: getattr(item, "__name__", str(item)[:50]))
def test_a_bad_field_is_refused_by_name(make: Callable[[], pb.Resource], change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        complete(check(mutate(make, **change)), None, NOW, links={})
    assert refusal.value.field == field


def test_an_empty_envelope_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="one record"):
        check(pb.Resource())


def test_fields_of_a_newer_api_are_refused_rather_than_dropped() -> None:
    newer = grant()
    newer.grant.MergeFromString(b"\xfa\x07\x03abc")
    with pytest.raises(InvalidInputError, match="newer"):
        check(newer)


def test_a_policy_problem_names_line_and_column() -> None:
    with pytest.raises(InvalidInputError, match=r"line 6, column \d+: spec.rquire: unknown key"):
        complete(check(mutate(policy, source=SOURCE.replace("require:", "rquire:"))), None, NOW)


def test_a_record_larger_than_a_change_may_be_is_refused() -> None:
    comment = "# " + "x" * 200_000
    with pytest.raises(InvalidInputError, match="larger than"):
        complete(check(mutate(policy, source=SOURCE + comment)), None, NOW)


@pytest.mark.parametrize("value", ["203.0.113.0/24", "2001:db8::/32", "203.0.113.7/32"])
def test_canonical_prefixes_are_accepted(value: str) -> None:
    name = f"tenants/acme/signals/ip~{value.replace('/', '_')}~ipsum"
    check(mutate(signal, name=name, value=value))
