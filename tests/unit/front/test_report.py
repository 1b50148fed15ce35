"""ReportAuthentication: what is taken, what it then counts for, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sidestep.v1 import decision_pb2, report_pb2, resources_pb2

from engine.decision import Basis, Outcome
from engine.errors import InvalidInputError
from engine.facts import Evidence, Facts
from sidecar.callers import Caller
from sidecar.clock import Clock
from sidecar.front.report import AUTHENTICATION, REFUSAL, AuthenticationReporter
from sidecar.front.servicer import DecisionServicer, Verdict
from sidecar.gather.gatherer import GatherConfig, Gatherer
from sidecar.local.store import LocalStore, LocalStoreError, StaleProofError, UsedProofError
from sidecar.store.reader import Reader
from tests.conformance.tokens import signing_key
from tests.fakes.proofs import LAPTOP, VAULT, report, token, vault
from tests.fakes.stock import RECORDS, Stock, request

CONFIG = GatherConfig("acme", 300.0, 3600.0)
PAYMENTS = Caller.of("payments", ["ReportAuthentication"], ["*"], diagnose=False)


class Pod:
    """A store, and what a worker makes of it."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.stock = Stock(folder)
        self.stock.load()
        self.stock.put(**VAULT)
        self.stock.confirm()
        self.reader = Reader(folder, clock=self.clock)
        self.local = LocalStore(folder / "local")
        self.reporter = AuthenticationReporter(self.local, self.reader, self.clock, "acme")
        self.servicer = DecisionServicer(CONFIG, self.clock, diagnose=True, reported=self.local.authentications)
        self.gatherer = Gatherer(CONFIG, None, self.local.authentications)

    def close(self) -> None:
        self.local.close()
        self.reader.close()
        self.stock.close()

    def report(self, proof: str | None = None, **fields: Any) -> decision_pb2.ReportAuthenticationResponse:
        answer = self.reporter.answer(report(proof, **fields).SerializeToString(), PAYMENTS)
        return decision_pb2.ReportAuthenticationResponse.FromString(answer)

    def decide(self, asked: decision_pb2.EvaluateRequest) -> tuple[Outcome, Basis]:
        with self.reader.view() as view:
            verdict = self.servicer.evaluate(asked, "", view, self.clock.wall())
        assert isinstance(verdict, Verdict)
        return verdict.decision.outcome, verdict.decision.basis

    def facts(self, asked: decision_pb2.EvaluateRequest) -> Facts:
        with self.reader.view() as view:
            return self.gatherer.gather(asked, view, self.clock.wall(), clock=self.clock).facts

    def sent(self, kind: str = AUTHENTICATION) -> list[bytes]:
        return [item.payload for item in self.local.take([kind], 100)]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(tmp_path)
    yield pod
    pod.close()


STEP_UP = (Outcome.STEP_UP, Basis.CHALLENGE)
ALLOW = (Outcome.ALLOW, Basis.ASSURANCE_SATISFIED)


def test_a_finished_step_up_satisfies_its_session(pod: Pod) -> None:
    assert pod.decide(vault()) == STEP_UP
    response = pod.report()
    assert (response.authentication.acr, list(response.authentication.amr)) == ("phr", ["hwk"])
    assert response.authentication.issuer == "https://idp.acme.example"
    assert (response.session, response.device, response.registering) == ("s1", "", False)
    assert pod.decide(vault()) == ALLOW
    (sent,) = pod.sent()
    up = report_pb2.ReportedAuthentication.FromString(sent)
    assert (up.tenant, up.subject, up.device) == ("acme", "alice", "")
    assert abs(up.report_time.ToNanoseconds() / 1e9 - pod.clock.wall()) < 60


@pytest.mark.parametrize(
    "other",
    [vault("s2"), vault(sid=None), request("alice", "vault.open"), vault(sub="bob")],
    ids=["session", "no-session", "no-token", "subject"],
)
def test_it_satisfies_nothing_else(pod: Pod, other: decision_pb2.EvaluateRequest) -> None:
    pod.report()
    assert pod.decide(other)[0] is not Outcome.ALLOW


def test_a_session_that_only_the_caller_names_is_the_callers_word(pod: Pod) -> None:
    pod.report()
    asked = request("alice", "vault.open", session=decision_pb2.SessionEvidence(id="s1"))
    assert pod.decide(asked) == STEP_UP
    assert [event.evidence for event in pod.facts(asked).authentications] == [Evidence.ASSERTED]
    pod.report(token(sid=None, jti="j-2"), session_id="s3")
    assert pod.decide(vault("s3")) == STEP_UP
    assert [event.evidence for event in pod.facts(vault("s3")).authentications] == [
        Evidence.VERIFIED,
        Evidence.ASSERTED,
    ]


def test_a_token_that_does_not_hold_takes_the_reported_ones_along(pod: Pod) -> None:
    pod.report()
    asked = vault()
    asked.session.token = asked.session.token[:-8] + "AAAAAAAA"
    assert pod.decide(asked)[0] is Outcome.DENY
    assert pod.facts(asked).authentications == ()


def test_its_age_counts_as_of_any_authentication(pod: Pod) -> None:
    pod.report(token(auth_time="now-6m", iat="now-6m"))
    assert pod.decide(vault()) == STEP_UP


def test_an_issuers_key_that_is_taken_away_takes_along_what_it_proved(pod: Pod) -> None:
    pod.report()
    assert pod.decide(vault()) == ALLOW
    pod.stock.put(
        **{
            "settings/default": {
                "issuers": [
                    {
                        "issuer": "https://idp.acme.example",
                        "audiences": ["https://api.acme.example"],
                        "max_acrs": ["nist-aal1"],
                    }
                ]
            }
        }
    )
    assert pod.facts(vault()).authentications[-1].acr == ""
    pod.stock.put(**{"settings/default": {}})
    assert len(pod.facts(request("alice", "vault.open")).authentications) == 0


def test_more_than_the_issuer_may_claim_counts_for_nothing(pod: Pod) -> None:
    assert pod.report(token(acr="nist-aal3")).authentication.acr == ""
    assert pod.decide(vault()) == STEP_UP


def shown(**fingerprint: str) -> decision_pb2.DeviceEvidence:
    return decision_pb2.DeviceEvidence(id="laptop", fingerprint=fingerprint or LAPTOP)


def test_on_a_recognised_device_it_is_history_and_validates(pod: Pod) -> None:
    response = pod.report(device=shown())
    assert (response.device, response.registering) == ("laptop", False)
    device = pod.facts(request("alice", device=shown())).device
    assert device.validated_at is not None
    assert abs(device.validated_at - (pod.clock.wall() - 10)) < 60
    assert [event.acr for event in device.authentications] == ["phr", "phr"]
    assert device.authentications[0].at == device.validated_at
    assert pod.facts(request("alice", device=shown(os="iOS", canvas="c9"))).device.authentications == ()


def test_a_weak_one_does_not_validate_the_device(pod: Pod) -> None:
    before = pod.facts(request("alice", device=shown())).device
    pod.report(token(acr="nist-aal1"), device=shown())
    after = pod.facts(request("alice", device=shown())).device
    assert after.validated_at == before.validated_at


def test_a_new_device_is_registered_by_the_control_plane(pod: Pod) -> None:
    seen = decision_pb2.DeviceEvidence(
        id="phone", fingerprint={"os": "iOS", "browser": "Safari", "browser_version": "18.2"}
    )
    response = pod.report(device=seen, register=True)
    assert (response.device, response.registering) == ("phone", True)
    up = report_pb2.ReportedAuthentication.FromString(pod.sent()[0])
    assert (up.device, up.register, up.key_id, dict(up.versions)) == ("phone", True, "fp-1", {"browser_version": 18})
    assert sorted(up.components) == ["browser", "os"]
    assert b"Safari" not in pod.sent()[0]


PHONE = {"os": "iOS", "browser": "Safari", "browser_version": "18.2"}


@pytest.mark.parametrize(
    ("problem", "subject", "claims"),
    [
        ("too_old_to_register", {}, {"auth_time": "now-11m"}),
        ("not_strong", {}, {"acr": "nist-aal2"}),
        ("not_strong", {}, {"acr": None}),
        ("voided_by_an_event", {"recover_time": "now-5s"}, {}),
        ("voided_by_an_event", {"sim_change_time": "now-5s"}, {}),
        ("voided_by_an_event", {"authenticator_change_time": "now-5s"}, {}),
        ("registered_before", {"device_register_time": "now-5s"}, {}),
    ],
)
def test_a_login_that_may_not_register_a_device_is_refused_at_once(
    pod: Pod, problem: str, subject: dict[str, Any], claims: dict[str, Any]
) -> None:
    pod.stock.put(**{"subjects/alice": {"state": "SUBJECT_STATE_ACTIVE", **subject}})
    seen = decision_pb2.DeviceEvidence(id="phone", fingerprint=PHONE)
    with pytest.raises(InvalidInputError, match=f"token: {problem}"):
        pod.report(token(**claims), device=seen, register=True)
    assert pod.sent() == []
    # Without the device it counts in its session, and its jti is not used up.
    assert pod.report(token(**claims)).device == ""


def test_an_older_login_counts_in_its_session_but_not_for_the_device(pod: Pod) -> None:
    before = pod.facts(request("alice", device=shown())).device
    assert pod.report(token(auth_time="now-11m"), device=shown()).device == ""
    assert pod.facts(request("alice", device=shown())).device == before
    assert report_pb2.ReportedAuthentication.FromString(pod.sent()[0]).device == ""
    pod.stock.put(**{"settings/default": {**RECORDS["settings/default"], "device_register_within": "7200s"}})
    assert pod.report(token(auth_time="now-10m", jti="j-2"), device=shown()).device == "laptop"


def test_one_login_registers_one_device_in_a_pod(pod: Pod) -> None:
    at = datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")

    def register(device: str, session: str, auth_time: str = at) -> decision_pb2.ReportAuthenticationResponse:
        seen = decision_pb2.DeviceEvidence(id=device, fingerprint=PHONE)
        return pod.report(token(jti=session, sid=session, auth_time=auth_time), device=seen, register=True)

    assert register("phone", "s1").registering
    with pytest.raises(StaleProofError, match="registered a device"):
        register("tablet", "s2")
    assert register("phone", "s3").registering
    assert len(pod.sent()) == 2


def test_a_device_is_bound_to_the_key_the_token_is_bound_to(pod: Pod) -> None:
    key = signing_key("alice-laptop")
    proof = token(cnf={"jkt": key.thumbprint})
    made = decision_pb2.DpopProof(
        proof=key.proof(proof, "POST", "https://api.acme.example/step-up", pod.clock.wall()),
        http_method="POST",
        http_uri="https://api.acme.example/step-up",
    )
    with pytest.raises(InvalidInputError, match="proof_missing"):
        pod.report(proof)
    pod.report(proof, dpop=made, device=decision_pb2.DeviceEvidence(id="key"), register=True)
    up = report_pb2.ReportedAuthentication.FromString(pod.sent()[0])
    assert (up.jkt, up.register) == (key.thumbprint, True)


@pytest.mark.parametrize(
    ("problem", "proof", "fields"),
    [
        ("token: subject_mismatch", {"sub": "bob"}, {}),
        ("token: audience", {"aud": "https://elsewhere.example"}, {}),
        ("token: expired", {"exp": "now-1m", "iat": "now-1h"}, {}),
        ("token: issuer", {"iss": "https://evil.example"}, {}),
        ("token: session_mismatch", {}, {"session_id": "s9"}),
        ("token: missing_jti", {"jti": None}, {}),
        ("token: missing_jti", {"jti": ""}, {}),
        ("token: its jti is longer", {"jti": "j" * 257}, {}),
        ("token: missing_auth_time", {"auth_time": None}, {}),
        ("token: impossible_auth_time", {"auth_time": "now+1h"}, {}),
        ("token: longer than", {"pad": "x" * 8000}, {}),
        ("subject.id", {}, {"subject": decision_pb2.SubjectRef()}),
        ("tenant", {}, {"tenant": "Acme"}),
        ("session_id", {"sid": None}, {"session_id": "a/b"}),
        ("device.id", {}, {"register": True}),
        ("device.id: is registered already", {}, {"register": True, "device": shown(os="iOS", canvas="c9")}),
        ("device.fingerprint", {}, {"register": True, "device": decision_pb2.DeviceEvidence(id="new")}),
        ("device.fingerprint", {}, {"device": decision_pb2.DeviceEvidence(fingerprint={"os": "x" * 600})}),
    ],
    ids=[str(number) for number in range(18)],
)
def test_what_does_not_hold_is_refused_by_its_field(
    pod: Pod, problem: str, proof: dict[str, Any], fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError) as error:
        pod.report(token(**proof), **fields)
    assert str(error.value).startswith(problem)
    assert pod.sent() == []
    assert pod.decide(vault()) == STEP_UP


def test_no_token_and_garbage_are_refused(pod: Pod) -> None:
    with pytest.raises(InvalidInputError, match="token: is required"):
        pod.report("")
    with pytest.raises(InvalidInputError, match="token: malformed"):
        pod.report("a.b.c")
    with pytest.raises(InvalidInputError, match="request: "):
        pod.reporter.answer(b"\xff\xff", None)


def test_a_used_jti_and_an_earlier_auth_time_are_refused(pod: Pod) -> None:
    proof = token()
    pod.report(proof)
    with pytest.raises(UsedProofError):
        pod.report(proof)
    with pytest.raises(StaleProofError):
        pod.report(token(jti="j-2", auth_time="now-1m"))
    assert len(pod.sent()) == 1


def test_refusals_are_told_once_a_minute_for_the_audit_log(pod: Pod) -> None:
    for _ in range(3):
        with pytest.raises(InvalidInputError):
            pod.report(token(sub="bob"))
    with pytest.raises(InvalidInputError):
        pod.report(device=decision_pb2.DeviceEvidence(id="a/b"))  # of form: nobody's attempt
    (refusal,) = (report_pb2.RefusedAuthentication.FromString(payload) for payload in pod.sent(REFUSAL))
    assert (refusal.tenant, refusal.subject, refusal.caller) == ("acme", "alice", "payments")
    assert refusal.problem == "subject_mismatch"


def test_without_the_local_store_nothing_is_taken(pod: Pod) -> None:
    reporter = AuthenticationReporter(None, pod.reader, pod.clock, "acme")
    with pytest.raises(LocalStoreError):
        reporter.answer(report().SerializeToString(), None)


def test_a_blocked_device_is_given_no_credit(pod: Pod) -> None:
    state = resources_pb2.DeviceTrust.Name(resources_pb2.DEVICE_TRUST_QUARANTINED)
    pod.stock.put(**{"deviceStates/laptop": {"subject": "alice", "trust": state}})
    assert pod.report(device=shown()).device == ""
    with pytest.raises(InvalidInputError, match="a blocked device of the subject is not ruled out"):
        pod.report(
            token(jti="j-2", auth_time="now-1s"),
            register=True,
            device=decision_pb2.DeviceEvidence(id="new", fingerprint={"timezone": "UTC"}),
        )
