"""Reported authentications: over real gRPC, into a real database, with proofs signed by real keys."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.v1 import admin_pb2, audit_pb2, report_pb2
from sidestep.v1 import resources_pb2 as pb

from controlplane.store import Write
from engine.books import Period
from engine.names import Collection
from tests.fakes.admin import AdminServer
from tests.fakes.issuer import AUDIENCE, SigningKey

ISSUER = "https://idp.acme.example"
RECORDED = report_pb2.AUTHENTICATION_OUTCOME_RECORDED
REFUSED = report_pb2.AUTHENTICATION_OUTCOME_REFUSED
NOW = time.time()


class World:
    """A control plane with one tenant, one issuer and its keys."""

    def __init__(self, server: AdminServer) -> None:
        self.server = server
        self.keys = {alg: SigningKey(alg, kid=f"idp-{alg}") for alg in ("ES256", "EdDSA", "RS256")}
        settings = pb.Settings(name="tenants/acme/settings/default")
        settings.issuers.add(issuer=ISSUER, audiences=[AUDIENCE], max_acrs=["phrh", "nist-aal3"])
        settings.issuers.add(issuer="https://other.example", audiences=[AUDIENCE], max_acrs=["nist-aal1"])
        self.put(settings)
        for key in self.keys.values():
            self.put(
                pb.Key(
                    name=f"tenants/acme/keys/{key.kid}", kind="KEY_KIND_ISSUER", issuer=ISSUER, jwk=json.dumps(key.jwk)
                )
            )
        self.put(pb.Subject(name="tenants/acme/subjects/alice", state="SUBJECT_STATE_ACTIVE"))

    def put(self, record: Any) -> Any:
        kinds = pb.Resource.DESCRIPTOR.fields_by_name.items()
        field = next(name for name, kind in kinds if kind.message_type is record.DESCRIPTOR)
        return self.server.stub.PutResource(admin_pb2.PutResourceRequest(resource=pb.Resource(**{field: record})))

    def token(self, alg: str = "ES256", header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A good proof; None removes a claim."""
        members = {
            "iss": ISSUER,
            "sub": "alice",
            "aud": AUDIENCE,
            "exp": NOW + 300,
            "iat": NOW - 5,
            "auth_time": int(NOW) - 10,
            "acr": "phr",
            "amr": ["hwk", "user"],
            "jti": "j-1",
            **claims,
        }
        members = {name: value for name, value in members.items() if value is not None}
        return self.keys[alg].token(members, **(header or {}))

    def report(self, *reported: report_pb2.ReportedAuthentication) -> list[report_pb2.AuthenticationReceipt]:
        request = report_pb2.ReportAuthenticationsRequest(sidecar="pod-1", authentications=reported)
        return list(self.server.reports.ReportAuthentications(request).receipts)

    def get(self, collection: Collection, record_id: str, kind: Any) -> Any:
        value = self.server.run(self.server.store.get("acme", collection, record_id))
        return None if value is None else kind.FromString(value)

    def subject(self) -> pb.Subject:
        found: pb.Subject = self.get(Collection.SUBJECTS, "alice", pb.Subject)
        return found

    def device(self, record_id: str = "laptop") -> pb.Device:
        found: pb.Device = self.get(Collection.DEVICES, record_id, pb.Device)
        return found

    def entries(self) -> list[audit_pb2.AuditEntry]:
        rows = self.server.run(self.server.store.audit.read("acme", 0, 100))
        return [audit_pb2.AuditEntry.FromString(record.entry) for _, record in rows]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with AdminServer(tmp_path) as server:
        yield World(server)


def reported(token: str, at: float = NOW, **more: Any) -> report_pb2.ReportedAuthentication:
    made = report_pb2.ReportedAuthentication(tenant="acme", subject=more.pop("subject", "alice"), token=token, **more)
    made.report_time.FromNanoseconds(int(at * 1e9))
    return made


def registration(token: str, **more: Any) -> report_pb2.ReportedAuthentication:
    at = more.pop("report_time", NOW)
    shown = {"components": {"os": b"o" * 16, "canvas": b"c" * 16}, "versions": {"browser_version": 126}, "key_id": "fp"}
    return reported(token, at=at, **{"device": "laptop", "register": True, **shown, **more})


@pytest.mark.parametrize("alg", ["ES256", "EdDSA", "RS256", "PS256"])
def test_a_strong_authentication_is_the_subjects_last_one(world: World, alg: str) -> None:
    header = {"alg": alg}
    if alg == "PS256":
        key = SigningKey("PS256", kid="idp-RS256", key=world.keys["RS256"].key)
        world.keys["PS256"] = key
    (receipt,) = world.report(reported(world.token(alg, header)))
    assert (receipt.outcome, receipt.problem) == (RECORDED, "")
    assert world.subject().strong_authentication_time.seconds == int(NOW) - 10


def test_a_strong_authentication_begins_a_budgets_period_once_and_a_weaker_one_does_not(world: World) -> None:
    def period() -> Period:
        return world.server.run(world.server.store.budgets.periods("acme", ["alice"]))["alice"]

    world.report(reported(world.token(acr="nist-aal2", jti="weak")))
    assert period() == Period(1, None)
    for _ in range(2):
        world.report(reported(world.token()))
    assert period() == Period(2, int(NOW) - 10)
    world.report(reported(world.token(jti="earlier", auth_time=int(NOW) - 60)))
    assert period() == Period(2, int(NOW) - 10)


def test_a_weaker_one_is_recorded_and_is_not_the_last_strong_one(world: World) -> None:
    (receipt,) = world.report(reported(world.token(acr="nist-aal2")))
    assert receipt.outcome == RECORDED
    assert not world.subject().HasField("strong_authentication_time")


def test_more_than_the_issuer_may_claim_counts_for_nothing(world: World) -> None:
    settings = pb.Settings(name="tenants/acme/settings/default")
    settings.issuers.add(issuer=ISSUER, audiences=[AUDIENCE], max_acrs=["nist-aal2"])
    world.put(settings)
    world.report(reported(world.token()))
    assert not world.subject().HasField("strong_authentication_time")
    (receipt,) = world.report(registration(world.token(jti="j-2")))
    assert "strong authentication only" in receipt.problem


def test_a_repetition_changes_nothing_and_is_recorded_again(world: World) -> None:
    first, again = registration(world.token()), registration(world.token())
    again.token = first.token
    again.report_time.seconds += 3
    assert world.report(first)[0].device_updated
    device, entries = world.device(), len(world.entries())
    (receipt,) = world.report(again)
    assert (receipt.outcome, receipt.device_updated) == (RECORDED, False)
    assert world.device() == device
    assert len(world.entries()) == entries


def test_an_earlier_one_that_arrives_later_does_not_take_the_time_back(world: World) -> None:
    world.report(registration(world.token()))
    world.report(reported(world.token(jti="j-2", auth_time=int(NOW) - 200), device="laptop"))
    device = world.device()
    assert [event.auth_time.seconds for event in device.authentications] == [int(NOW) - 10, int(NOW) - 200]
    assert device.validate_time.seconds == int(NOW) - 10
    assert world.subject().strong_authentication_time.seconds == int(NOW) - 10


def test_a_registered_device_has_what_was_shown_and_proved(world: World) -> None:
    thumbprint = SigningKey().thumbprint
    (receipt,) = world.report(registration(world.token(cnf={"jkt": thumbprint}), jkt=thumbprint))
    assert (receipt.outcome, receipt.device_updated) == (RECORDED, True)
    device = world.device()
    assert (device.subject, device.jkt, device.key_id) == ("alice", thumbprint, "fp")
    assert dict(device.components) == {"os": b"o" * 16, "canvas": b"c" * 16}
    assert dict(device.versions) == {"browser_version": 126}
    assert device.HasField("create_time")
    assert device.validate_time.seconds == int(NOW) - 10
    (event,) = device.authentications
    assert (event.acr, list(event.amr), event.issuer) == ("phr", ["hwk", "user"], ISSUER)
    last = world.entries()[-1]
    assert (last.action, last.name) == ("device.register", "tenants/acme/subjects/alice")
    assert last.actor == "sidecar:pod-1"
    assert last.outcome == audit_pb2.AUDIT_OUTCOME_DONE


def test_a_weak_authentication_does_not_validate_a_device(world: World) -> None:
    world.report(registration(world.token(auth_time=int(NOW) - 100)))
    world.report(reported(world.token(jti="j-2", acr="nist-aal1"), device="laptop"))
    device = world.device()
    assert device.validate_time.seconds == int(NOW) - 100
    assert [event.acr for event in device.authentications] == ["nist-aal1", "phr"]


def test_a_device_lists_at_most_eight(world: World) -> None:
    world.report(registration(world.token()))
    for number in range(9):
        world.report(reported(world.token(jti=f"n-{number}", auth_time=int(NOW) - 20 - number), device="laptop"))
    times = [event.auth_time.seconds - int(NOW) for event in world.device().authentications]
    assert times == [-10, -20, -21, -22, -23, -24, -25, -26]


def test_an_unknown_device_that_is_not_to_be_registered_stays_unknown(world: World) -> None:
    (receipt,) = world.report(reported(world.token(), device="laptop"))
    assert (receipt.outcome, receipt.device_updated) == (RECORDED, False)
    assert world.device() is None


@pytest.mark.parametrize("trust", ["DEVICE_TRUST_QUARANTINED", "DEVICE_TRUST_REVOKED"])
def test_a_blocked_device_is_not_validated(world: World, trust: str) -> None:
    world.report(registration(world.token(auth_time=int(NOW) - 100)))
    world.put(pb.DeviceState(name="tenants/acme/deviceStates/laptop", subject="alice", trust=trust))
    (receipt,) = world.report(reported(world.token(jti="j-2"), device="laptop"))
    assert (receipt.outcome, receipt.device_updated) == (RECORDED, False)
    assert world.device().validate_time.seconds == int(NOW) - 100
    assert world.subject().strong_authentication_time.seconds == int(NOW) - 10


REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("another subject", {"sub": "mallory"}, {}),
    ("another audience", {"aud": "https://elsewhere.example"}, {}),
    ("issuer is not one", {"iss": "https://evil.example"}, {}),
    ("key that its issuer does not have", {"iss": "https://other.example"}, {}),
    ("has no jti", {"jti": None}, {}),
    ("has no jti, or one longer", {"jti": "j" * 257}, {}),
    ("has no auth_time", {"auth_time": None}, {}),
    ("auth_time is impossible", {"auth_time": int(NOW) + 3600}, {}),
    ("had expired", {"exp": NOW - 60}, {}),
    ("was not valid yet", {"nbf": NOW + 3600}, {}),
    ("lacks iss, sub, aud or exp", {"exp": None}, {}),
    ("of another type", {}, {"header": {"typ": "dpop+jwt"}}),
    ("algorithm is not one", {}, {"header": {"alg": "none"}}),
    ("signature does not hold", {}, {"header": {"alg": "EdDSA"}}),
    ("critical extension", {}, {"header": {"crit": ["b64"]}}),
    ("key that its issuer does not have", {}, {"header": {"kid": "idp-9"}}),
]


@pytest.mark.parametrize(("problem", "claims", "more"), REFUSALS, ids=[str(n) for n in range(len(REFUSALS))])
def test_a_proof_that_does_not_hold_is_refused_and_audited(
    world: World, problem: str, claims: dict[str, Any], more: dict[str, Any]
) -> None:
    (receipt,) = world.report(reported(world.token(**more, **claims)))
    assert receipt.outcome == REFUSED
    assert problem in receipt.problem
    assert not world.subject().HasField("strong_authentication_time")
    last = world.entries()[-1]
    assert (last.action, last.outcome) == ("authentication.report", audit_pb2.AUDIT_OUTCOME_REFUSED)
    assert last.detail == receipt.problem


def test_a_changed_proof_is_refused(world: World) -> None:
    head, body, signature = world.token().split(".")
    other = world.token(sub="alice", acr="phrh").split(".")[1]
    assert "signature" in world.report(reported(f"{head}.{other}.{signature}"))[0].problem
    assert "no signed JWT" in world.report(reported(f"{head}.{body}"))[0].problem


def test_a_jti_counts_for_one_report_only(world: World) -> None:
    token = world.token()
    world.report(reported(token))
    for other in (registration(token), reported(world.token(acr="phrh"))):
        (receipt,) = world.report(other)
        assert receipt.outcome == REFUSED
        assert "a jti counts once" in receipt.problem
    assert world.device() is None


def test_used_proofs_are_forgotten_when_they_would_be_refused_anyway(world: World) -> None:
    world.report(reported(world.token()))
    proofs = world.server.store.proofs
    assert world.server.run(proofs.forget(NOW + 6 * 86400.0)) == 0
    assert world.server.run(proofs.forget(NOW + 8 * 86400.0)) == 1


def test_an_outage_of_days_loses_nothing_and_a_proof_that_is_older_is_refused(world: World) -> None:
    late = NOW - 6 * 86400.0
    token = world.token(exp=late + 60, iat=late, auth_time=int(late))
    assert world.report(reported(token, at=late))[0].outcome == RECORDED
    assert world.subject().strong_authentication_time.seconds == int(late)
    late -= 2 * 86400.0
    token = world.token(exp=late + 60, iat=late, auth_time=int(late), jti="j-2")
    assert "too long ago" in world.report(reported(token, at=late))[0].problem
    assert "impossible time" in world.report(reported(world.token(jti="j-3"), at=NOW + 3600))[0].problem


def test_a_device_is_registered_after_a_strong_authentication_only(world: World) -> None:
    (receipt,) = world.report(registration(world.token(acr="nist-aal2")))
    assert (receipt.outcome, world.device()) == (REFUSED, None)
    assert "strong authentication only" in receipt.problem


def at(ago_s: float, **claims: Any) -> dict[str, Any]:
    """Claims of a login so long ago whose token is still valid."""
    return {"auth_time": int(NOW - ago_s), "iat": None, **claims}


def test_an_old_login_registers_no_device_and_counts_for_none(world: World) -> None:
    (receipt,) = world.report(registration(world.token(**at(601))))
    assert "too long after it happened to register" in receipt.problem
    world.report(registration(world.token(**at(599, jti="j-2"))))
    before = world.device()
    (receipt,) = world.report(reported(world.token(**at(700, jti="j-4")), device="laptop"))
    assert "too long after it happened to count for a device" in receipt.problem
    assert world.device() == before
    # For the subject alone it counts as of its time.
    (receipt,) = world.report(reported(world.token(**at(500, jti="j-5"))))
    assert receipt.outcome == RECORDED


def test_how_old_it_may_be_is_a_setting(world: World) -> None:
    settings = pb.Settings.FromString(world.server.run(world.server.store.get("acme", Collection.SETTINGS, "default")))
    settings.device_register_within.FromSeconds(60)
    world.put(settings)
    assert "too long" in world.report(registration(world.token(**at(61))))[0].problem
    assert world.report(registration(world.token(**at(59, jti="j-2"))))[0].device_updated


@pytest.mark.parametrize("span_s", [29, 12 * 3600 + 1, -1])
def test_the_setting_has_bounds(world: World, span_s: int) -> None:
    settings = pb.Settings(name="tenants/acme/settings/default")
    settings.device_register_within.FromSeconds(span_s)
    with pytest.raises(grpc.RpcError) as error:
        world.put(settings)
    assert "settings.device_register_within" in str(error.value.details())


def test_one_login_registers_one_device_in_the_whole_fleet(world: World) -> None:
    world.report(registration(world.token(**at(10))))
    stolen = registration(world.token(**at(10, jti="another-token")), device="attacker")
    (receipt,) = world.report(stolen)
    assert (receipt.outcome, world.device("attacker")) == (REFUSED, None)
    assert "not later than the last one that registered" in receipt.problem
    (receipt,) = world.report(registration(world.token(**at(60, jti="older")), device="attacker"))
    assert "not later than the last one that registered" in receipt.problem
    # A later login registers another; the first device may be reported with it as well.
    assert world.report(registration(world.token(**at(9, jti="later")), device="tablet"))[0].device_updated
    assert world.report(registration(world.token(**at(8, jti="once-more"))))[0].device_updated
    assert world.subject().device_register_time.seconds == int(NOW) - 9


def test_a_removed_device_does_not_come_back_with_the_login_that_brought_it(world: World) -> None:
    world.report(registration(world.token(**at(10))))
    world.server.stub.DeleteResource(admin_pb2.DeleteResourceRequest(name="tenants/acme/devices/laptop"))
    (receipt,) = world.report(registration(world.token(**at(10, jti="j-2"))))
    assert (receipt.outcome, world.device()) == (REFUSED, None)


def test_a_put_of_a_subject_keeps_what_registered_its_devices(world: World) -> None:
    world.report(registration(world.token(**at(10))))
    plain = pb.Subject(name="tenants/acme/subjects/alice", state="SUBJECT_STATE_ACTIVE")
    world.put(plain)
    assert world.subject().device_register_time.seconds == int(NOW) - 10
    plain.device_register_time.FromSeconds(int(NOW) + 3600)
    with pytest.raises(grpc.RpcError) as error:
        world.put(plain)
    assert "device_register_time" in str(error.value.details())


@pytest.mark.parametrize(("late_s", "registered"), [(50 * 60.0, True), (75 * 60.0, False)])
def test_after_an_outage_a_registration_may_come_an_hour_late(world: World, late_s: float, registered: bool) -> None:
    """However late the sidecar says that it was reported in time."""
    then = NOW - late_s
    proof = world.token(exp=then + 60, iat=then, auth_time=int(then))
    (receipt,) = world.report(registration(proof, report_time=then))
    assert receipt.device_updated is registered
    assert ("arrived too late" in receipt.problem) is not registered


def test_a_login_of_the_future_by_both_clocks_is_none(world: World) -> None:
    """A sidecar whose clock is ahead does not stretch the skew that its proofs have."""
    # Of this moment, not of when the tests began: that may be longer ago than a skew.
    now = time.time()
    token = world.token(auth_time=int(now + 50), iat=None, exp=now + 600)
    (receipt,) = world.report(reported(token, at=now + 29))
    assert "auth_time is impossible" in receipt.problem


def test_a_code_by_phone_sent_while_a_sim_cooled_off_is_not_strong_afterwards(world: World) -> None:
    settings = pb.Settings(name="tenants/acme/settings/default")
    settings.issuers.add(issuer=ISSUER, audiences=[AUDIENCE], max_acrs=["nist-aal3"])
    settings.top_requirement.acr = "nist-aal2"
    settings.top_requirement.max_age.FromSeconds(300)
    settings.cool_off.FromSeconds(60)
    world.put(settings)
    subject = world.subject()
    subject.sim_change_time.FromSeconds(int(NOW) - 100)
    world.put(subject)
    code = {"acr": "nist-aal2", "amr": ["pwd", "sms"]}
    (receipt,) = world.report(registration(world.token(**at(90, **code))))
    assert "strong authentication only" in receipt.problem
    world.report(reported(world.token(**at(41, jti="j-2", **code))))
    assert not world.subject().HasField("strong_authentication_time")
    assert world.server.run(world.server.store.budgets.periods("acme", ["alice"]))["alice"] == Period(1, None)
    world.report(reported(world.token(**at(40, jti="j-3", **code))))
    assert world.subject().strong_authentication_time.seconds == int(NOW) - 40
    assert world.server.run(world.server.store.budgets.periods("acme", ["alice"]))["alice"] == Period(2, int(NOW) - 40)


def test_a_device_is_bound_to_no_key_but_the_proofs(world: World) -> None:
    (receipt,) = world.report(registration(world.token(), jkt=SigningKey().thumbprint))
    assert "not bound to the device's key" in receipt.problem
    assert world.device() is None


def test_a_device_that_shows_nothing_is_not_registered(world: World) -> None:
    (receipt,) = world.report(reported(world.token(), device="laptop", register=True))
    assert "nothing to know it by" in receipt.problem


@pytest.mark.parametrize("event", ["recover_time", "sim_change_time", "authenticator_change_time"])
def test_a_device_is_not_registered_on_what_was_proved_before_an_event(world: World, event: str) -> None:
    subject = world.subject()
    getattr(subject, event).FromSeconds(int(NOW) - 5)
    world.put(subject)
    (receipt,) = world.report(registration(world.token()))
    assert "is not later than the subject's last" in receipt.problem
    assert world.device() is None
    (receipt,) = world.report(registration(world.token(jti="j-2", auth_time=int(NOW) - 4)))
    assert receipt.device_updated


def test_after_a_sim_change_codes_by_phone_are_not_strong(world: World) -> None:
    settings = pb.Settings(name="tenants/acme/settings/default")
    settings.issuers.add(issuer=ISSUER, audiences=[AUDIENCE], max_acrs=["nist-aal3"])
    settings.top_requirement.acr = "nist-aal2"
    settings.top_requirement.max_age.FromSeconds(300)
    world.put(settings)
    by_phone = {"acr": "nist-aal2", "amr": ["pwd", "sms"]}
    world.report(reported(world.token(auth_time=int(NOW) - 100, **by_phone)))
    assert world.subject().strong_authentication_time.seconds == int(NOW) - 100
    subject = world.subject()
    subject.sim_change_time.FromSeconds(int(NOW) - 50)
    world.put(subject)
    (receipt,) = world.report(registration(world.token(jti="j-2", **by_phone)))
    assert "strong authentication only" in receipt.problem
    assert world.subject().strong_authentication_time.seconds == int(NOW) - 100


def test_a_registered_device_is_not_registered_as_another(world: World) -> None:
    world.report(registration(world.token()))
    before = world.device()
    (receipt,) = world.report(registration(world.token(jti="j-2"), components={"os": b"x" * 16}))
    assert "looks otherwise" in receipt.problem
    assert world.device() == before
    (receipt,) = world.report(registration(world.token(jti="j-3", auth_time=int(NOW) - 1)))
    assert receipt.device_updated


def test_another_subjects_device_is_refused(world: World) -> None:
    world.report(registration(world.token()))
    world.put(pb.Subject(name="tenants/acme/subjects/bob", state="SUBJECT_STATE_ACTIVE"))
    before = world.device()
    (receipt,) = world.report(reported(world.token(sub="bob", jti="j-2"), subject="bob", device="laptop"))
    assert "another subject" in receipt.problem
    assert world.device() == before


def test_a_disabled_subject_proves_nothing(world: World) -> None:
    world.put(pb.Subject(name="tenants/acme/subjects/alice", state="SUBJECT_STATE_DISABLED"))
    (receipt,) = world.report(registration(world.token()))
    assert receipt.problem == "the subject is disabled"
    assert world.device() is None


def test_nobody_writes_the_last_strong_authentication_but_the_control_plane(world: World) -> None:
    world.report(reported(world.token()))
    plain = pb.Subject(name="tenants/acme/subjects/alice", state="SUBJECT_STATE_ACTIVE", roles=["staff"])
    world.put(plain)
    assert world.subject().strong_authentication_time.seconds == int(NOW) - 10
    plain.strong_authentication_time.FromSeconds(int(NOW))
    with pytest.raises(grpc.RpcError) as error:
        world.put(plain)
    assert "strong_authentication_time" in str(error.value.details())


def test_what_the_sidecar_refused_itself_is_in_the_audit_log(world: World) -> None:
    refusal = report_pb2.RefusedAuthentication(tenant="acme", subject="alice", caller="payments", problem="reused_jti")
    request = report_pb2.ReportAuthenticationsRequest(sidecar="pod-1", refusals=[refusal])
    world.server.reports.ReportAuthentications(request)
    last = world.entries()[-1]
    assert (last.action, last.outcome) == ("authentication.report", audit_pb2.AUDIT_OUTCOME_REFUSED)
    assert last.detail == "reported by payments, refused by the sidecar: reused_jti"


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("sidecar", report_pb2.ReportAuthenticationsRequest()),
        (
            "authentications",
            report_pb2.ReportAuthenticationsRequest(sidecar="p", authentications=[reported("t")] * 101),
        ),
        (
            "authentications[0].token",
            report_pb2.ReportAuthenticationsRequest(sidecar="p", authentications=[reported("")]),
        ),
        (
            "authentications[0].report_time",
            report_pb2.ReportAuthenticationsRequest(sidecar="p", authentications=[reported("t", at=0)]),
        ),
        (
            "authentications[0].subject",
            report_pb2.ReportAuthenticationsRequest(sidecar="p", authentications=[reported("t", subject="a/b")]),
        ),
        (
            "authentications[0].device",
            report_pb2.ReportAuthenticationsRequest(sidecar="p", authentications=[reported("t", register=True)]),
        ),
    ],
    ids=["sidecar", "too-many", "token", "report-time", "subject", "device"],
)
def test_a_report_that_cannot_be_one_names_the_field(
    world: World, field: str, request_: report_pb2.ReportAuthenticationsRequest
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        world.server.reports.ReportAuthentications(request_)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error.value.details()).startswith(field)


def test_a_write_in_between_is_not_overwritten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subject gets a role while its authentication is being written."""
    store = world.server.store
    commit = store.commit
    promoted = world.subject()
    promoted.roles.append("staff")
    interfering = [Write(Collection.SUBJECTS, "alice", promoted.SerializeToString(deterministic=True))]

    async def overtaken(tenant: str, writes: Any, **more: Any) -> Any:
        if interfering:
            await commit(tenant, [interfering.pop()])
        return await commit(tenant, writes, **more)

    monkeypatch.setattr(store, "commit", overtaken)
    assert world.report(reported(world.token()))[0].outcome == RECORDED
    assert list(world.subject().roles) == ["staff"]
    assert world.subject().HasField("strong_authentication_time")
