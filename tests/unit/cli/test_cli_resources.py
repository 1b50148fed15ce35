"""Every group of commands against a real AdminService."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

if TYPE_CHECKING:
    from conftest import Sidestep

POLICY = """# who may pay
apiVersion: sidestep.dev/v1
kind: Policy
metadata: {name: payments, tenant: acme}
spec:
  match: {actions: ["payments.*"]}
  require: {acr: nist-aal2, maxAge: 12h}
  triggers:
    - {name: unknown-device, when: "!device.known", require: {acr: phr, maxAge: 5m}}
"""
GRANT = ("grant", "put", "g1", "--subject", "alice", "--action", "payments.*", "--acr", "nist-aal2", "--max-age", "1h")


def test_policy_life(sidestep: Sidestep) -> None:
    path = sidestep.file("payments.yaml", POLICY)
    assert sidestep("policy", "check", path) == f"{path}: ok\n"
    assert "tenants/acme/policies/payments written at revision 1:1" in sidestep("policy", "put", path)
    assert "unchanged" in sidestep("policy", "put", path)
    assert sidestep("policy", "get", "payments", "--source") == POLICY
    assert sidestep("policy", "get", "payments", "-o", "yaml") == POLICY
    assert sidestep.json("policy", "get", "payments")["version"] == "1"
    assert [policy["name"] for policy in sidestep.json("policy", "list")] == ["tenants/acme/policies/payments"]
    assert "deleted at revision 1:2" in sidestep("policy", "delete", "payments")
    assert sidestep("policy", "get", "payments", code=4) == "error: tenants/acme/policies/payments: not found\n"
    assert json.loads(sidestep("policy", "schema"))["type"] == "object"


@pytest.mark.parametrize("how", [("put",), ("check",), ("check", "--local")])
def test_policy_problems_have_a_place_and_a_caret(sidestep: Sidestep, how: tuple[str, ...]) -> None:
    path = sidestep.file(
        "bad.yaml", POLICY.replace("!device.known", "!device.knwn").replace("require: {acr: ni", "rquire: {acr: ni")
    )
    shown = sidestep("policy", *how, path, code=2).splitlines()
    assert shown[0].startswith(f"error: {path}:7:11: spec.rquire: unknown key")
    source, caret = shown[1], shown[2]
    assert caret.strip() == "^"
    assert source[caret.index("^") :].startswith("{acr: ni")
    assert not sidestep.json("policy", "list")


def test_a_condition_problem_points_into_the_condition(sidestep: Sidestep) -> None:
    text = "---\n# first\n---\n" + POLICY.replace("!device.known", "!device.knwn")
    path = sidestep.file("bad.yaml", text)
    shown = sidestep("policy", "put", path, code=2).splitlines()
    assert shown[0].startswith(f"error: {path}:12:")
    assert "device.knwn" in shown[0]
    assert "device.knwn" in shown[1]


def test_subject_life(sidestep: Sidestep) -> None:
    sidestep("subject", "put", "alice", "--role", "staff", "--role", "admin", "--method", "totp")
    sidestep("subject", "disable", "alice")
    sidestep("subject", "put", "alice", "--role", "staff", "--recovered", "2026-01-01T00:00:00Z")
    alice = sidestep.json("subject", "get", "alice")
    assert (alice["state"], alice["roles"], alice["methods"]) == ("SUBJECT_STATE_DISABLED", ["staff"], [])
    assert alice["recoverTime"] == "2026-01-01T00:00:00Z"
    sidestep("subject", "enable", "alice")
    assert "ACTIVE" in sidestep("subject", "list")
    sidestep("subject", "delete", "alice")
    sidestep("subject", "disable", "alice", code=4)


def test_grant_life(sidestep: Sidestep) -> None:
    sidestep(*GRANT, "--expires", "+90d", "--reason", "traveller", "--owner", "sec@acme")
    assert sidestep.json("grant", "get", "g1")["ceiling"] == {
        "acr": "nist-aal2",
        "maxAge": "3600s",
        "evidence": "EVIDENCE_UNSPECIFIED",
    }
    sidestep("grant", "suspend", "g1", "--reason", "on leave")
    assert sidestep.json("grant", "get", "g1")["state"] == "GRANT_STATE_SUSPENDED"
    sidestep("grant", "resume", "g1")
    shown = sidestep("grant", "revoke", "g1", "--reason", "left")
    assert "is REVOKED at revision 1:4" in shown
    assert yaml.safe_load(shown.splitlines()[1]) == {"min_revision": {"epoch": 1, "revision": 4}}
    assert "is revoked" in sidestep("grant", "resume", "g1", code=1)
    assert "is revoked" in sidestep("grant", "suspend", "g1", "--reason", "x", code=1)
    # Putting new bounds does not bring it back.
    sidestep(*GRANT, "--expires", "+10d")
    assert sidestep.json("grant", "list")[0]["state"] == "GRANT_STATE_REVOKED"
    sidestep("grant", "delete", "g1")


def test_revoke_answers_with_the_revision_as_data(sidestep: Sidestep) -> None:
    sidestep(*GRANT, "--expires", "+90d")
    revoked = sidestep.json("grant", "revoke", "g1", "--reason", "left")
    assert revoked["revision"] == {"epoch": "1", "revision": "2"}
    assert revoked["grant"]["state"] == "GRANT_STATE_REVOKED"
    assert set(revoked) == {"grant", "revision", "warnings"}


def test_device_life(sidestep: Sidestep) -> None:
    put = (
        "device", "put", "d1", "--subject", "alice", "--jkt", "x" * 43, "--validated", "2026-01-01",
        "--fingerprint", "os=macOS", "--fingerprint", "browser_version=126.0.1", "--fingerprint", "smell=rose",
    )  # fmt: skip
    assert "no usable FINGERPRINT key" in sidestep(*put, code=1)
    sidestep("key", "add", "fp1", "--kind", "fingerprint")
    sidestep(*put)
    assert sidestep.stderr.startswith("warning: device.fingerprint[smell]:")
    device = sidestep.json("device", "get", "d1")
    assert (device["versions"], device["keyId"], list(device["components"])) == (
        {"browser_version": 126},
        "fp1",
        ["os"],
    )
    assert device["fingerprint"] == {}
    assert "unchanged" in sidestep(*put)
    sidestep("device", "quarantine", "d1", "--reason", "lost")
    assert "QUARANTINED" in sidestep("device", "list", "--states")
    sidestep("device", "revoke", "d1")
    sidestep("device", "restore", "d1")
    state = sidestep.json("device", "list", "--states")[0]
    assert (state["subject"], state["trust"]) == ("alice", "DEVICE_TRUST_ACTIVE")
    assert "name its --subject" in sidestep("device", "quarantine", "d2", code=4)
    sidestep("device", "quarantine", "d2", "--subject", "bob")
    sidestep("device", "delete", "d1")
    # The standing remains, and with it who it is about.
    sidestep("device", "quarantine", "d1")


def test_device_import_is_whole_or_nothing(sidestep: Sidestep) -> None:
    good = [{"id": f"d{n}", "subject": "alice", "versions": {"os_version": n}} for n in range(3)]
    lines = "".join(json.dumps(item) + "\n" for item in good)
    path = sidestep.file("devices.jsonl", lines + '{"id": "d9"\n\n{"id": "d8", "subjct": "x"}\n[]\n{"subject": "x"}\n')
    shown = sidestep("device", "import", path, code=2).splitlines()
    assert [line.split(": ")[1] for line in shown] == [f"{path}:{line}" for line in (4, 6, 7, 8)]
    assert not sidestep.json("device", "list")
    path = sidestep.file("devices.jsonl", lines)
    counts = sidestep.json("device", "import", path)
    assert {key: counts[key] for key in ("received", "added", "removed")} == {
        "received": "3",
        "added": "3",
        "removed": "0",
    }
    path = sidestep.file("devices.jsonl", lines.splitlines()[0])
    assert "would shrink from 3 to 1" in sidestep("device", "import", path, "--replace", code=1)
    assert "2 removed" in sidestep("device", "import", path, "--replace", "--force")


def test_session_life(sidestep: Sidestep) -> None:
    sidestep("session", "revoke", "s1", "--subject", "alice", "--reason", "stolen", "--expires", "+7d")
    assert sidestep.json("session", "list")[0]["reason"] == "stolen"
    assert "unchanged" not in sidestep("session", "revoke", "s1")
    sidestep("session", "delete", "s1")
    sidestep("session", "delete", "s1", code=4)


def public_pem(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def test_issuer_keys_from_pem_and_jwk(sidestep: Sidestep, tmp_path: Path) -> None:
    keys = {
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "ed": ed25519.Ed25519PrivateKey.generate(),
        "rsa": rsa.generate_private_key(65537, 2048),
    }
    for name, key in keys.items():
        (tmp_path / f"{name}.pem").write_bytes(public_pem(key))
        sidestep("key", "add", name, "--issuer", "https://idp", "--pem", str(tmp_path / f"{name}.pem"))
    jwk = json.loads(sidestep.json("key", "get", "ec")["jwk"])
    assert jwk["crv"] == "P-256"
    jwks = sidestep.file("jwks.json", json.dumps({"keys": [{**jwk, "kid": "other"}, {**jwk, "kid": "k9"}]}))
    sidestep("key", "add", "k9", "--issuer", "https://idp", "--jwk", jwks)
    assert "0 keys with kid 'k8'" in sidestep("key", "add", "k8", "--issuer", "https://idp", "--jwk", jwks, code=2)
    private = keys["ec"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "private.pem").write_bytes(private)
    shown = sidestep("key", "add", "p", "--issuer", "i", "--pem", str(tmp_path / "private.pem"), code=2)
    assert shown == "error: --pem: is a private key; give the public key only\n"
    small = tmp_path / "small.pem"
    small.write_bytes(public_pem(ec.generate_private_key(ec.SECP384R1())))
    assert "neither EC P-256" in sidestep("key", "add", "p", "--issuer", "i", "--pem", str(small), code=2)


def test_secrets_are_never_printed(sidestep: Sidestep) -> None:
    assert "secret" not in sidestep("key", "add", "fp1", "--kind", "fingerprint", "-o", "json")
    for output in ("table", "json", "yaml"):
        for command in (("get", "fp1"), ("list",)):
            assert "secret" not in sidestep("key", *command, "-o", output)
    sidestep("key", "add", "t1", "--kind", "tenant", "--expires", "2030-01-01")
    sidestep("key", "add", "x", "--kind", "tenant", "--issuer", "i", code=2)
    sidestep("key", "delete", "fp1")


def test_settings_and_posture(sidestep: Sidestep) -> None:
    sidestep("settings", "get", code=4)
    document = """apiVersion: sidestep.dev/v1
kind: Settings
spec:
  issuers:
    - {issuer: https://idp, audiences: [api], maxAcrs: [phr]}
  riskCeiling: 80
"""
    sidestep("settings", "put", sidestep.file("settings.yaml", document))
    assert sidestep.json("settings", "get")["riskCeiling"] == 80
    assert sidestep.json("posture", "get")["level"] == "POSTURE_LEVEL_LOW"
    sidestep("posture", "set", "CRITICAL", "--reason", "attack")
    sidestep("posture", "kill-switch", "on")
    posture = sidestep.json("posture", "get")
    assert (posture["level"], posture["exemptionsOff"]) == ("POSTURE_LEVEL_CRITICAL", True)
    sidestep("posture", "set", "low")
    assert sidestep.json("posture", "get")["exemptionsOff"] is True
    sidestep("posture", "kill-switch", "off")
    sidestep("posture", "set", "mild", code=2)


def test_signals_by_hand(sidestep: Sidestep) -> None:
    sidestep("signal", "put", "ip", "203.0.113.0/24", "--score", "90", "--ttl", "1h")
    sidestep("signal", "put", "asn", "AS64500", "--source", "noc")
    sidestep("signal", "put", "country", "kp")
    assert [signal["value"] for signal in sidestep.json("signal", "list")] == ["64500", "KP", "203.0.113.0/24"]
    assert [signal["value"] for signal in sidestep.json("signal", "list", "--kind", "ip")] == ["203.0.113.0/24"]
    assert [signal["value"] for signal in sidestep.json("signal", "list", "--source", "noc")] == ["64500"]
    assert len(sidestep.json("signal", "list", "--source", "manual", "--limit", "1")) == 1
    sidestep("signal", "delete", "ip", "203.0.113.0/24")
    sidestep("signal", "delete", "ip", "203.0.113.0/24", code=4)
    assert sidestep("signal", "put", "ip", "203.0.113.1/24", code=2) == (
        "error: value: 203.0.113.1/24 has host bits set\n"
    )


def test_feed_import_reports_refused_lines_and_imports_the_rest(sidestep: Sidestep) -> None:
    lines = [
        "# IPsum",
        "203.0.113.1\t9",
        "nonsense\t3",
        "203.0.113.2\t1",
        "203.0.113.2\t3",
        "203.0.113.3\tx",
        "::1/0\t2",
    ]
    path = sidestep.file("feed.txt", "\n".join(lines))
    shown = sidestep("signal", "import", path, "--source", "ipsum")
    assert shown.startswith(
        "signals of ipsum: 2 received, 2 added, 0 updated, 0 removed, 0 unchanged, 1 merged, 0 expired, 3 refused"
    )
    refused = sidestep.stderr.splitlines()
    assert [line.split(": ")[1] for line in refused] == [f"{path}:3", f"{path}:6", f"{path}:7"]
    scores = {signal["value"]: signal["score"] for signal in sidestep.json("signal", "list")}
    assert scores == {"203.0.113.1/32": 100, "203.0.113.2/32": 50}
    again = sidestep.json("signal", "import", path, "--source", "ipsum")
    assert (again["unchanged"], [item["line"] for item in again["refused"]]) == ("2", [3, 6, 7])


def test_a_shrinking_feed_needs_force(sidestep: Sidestep) -> None:
    full = sidestep.file("full.txt", "".join(f"203.0.113.{n}\n" for n in range(10)))
    sidestep("signal", "import", full, "--source", "bad-hosts")
    short = sidestep.file("short.txt", "203.0.113.1\n")
    assert "would shrink from 10 to 1 records" in sidestep("signal", "import", short, "--source", "bad-hosts", code=1)
    assert "1 unchanged" in sidestep("signal", "import", short, "--source", "bad-hosts", "--add")
    assert "9 removed" in sidestep("signal", "import", short, "--source", "bad-hosts", "--force")
    empty = sidestep.file("empty.txt", "# nothing today\n")
    assert "no line of it is a signal" in sidestep("signal", "import", empty, "--source", "bad-hosts", code=2)
    assert "1 removed" in sidestep("signal", "import", empty, "--source", "bad-hosts", "--force")


def test_csv_feed_with_expired_lines(sidestep: Sidestep) -> None:
    text = (
        "kind,value,score,expires\nasn,64500,80,2020-01-01\ncountry,de,10,\nsubject,mallory,99,2090-01-01T00:00:00Z\n"
    )
    counts = sidestep.json("signal", "import", "-", "--source", "mine", stdin=text)
    assert (counts["added"], counts["expired"]) == ("2", 1)
    assert sidestep.json("signal", "list", "--kind", "subject")[0]["expireTime"] == "2090-01-01T00:00:00Z"


def test_revisions_and_sidecars(sidestep: Sidestep) -> None:
    sidestep("posture", "set", "low")
    heads = sidestep.json("revisions")
    assert [(head["lane"], head["revision"]) for head in heads] == [("LANE_URGENT", "1"), ("LANE_BULK", "0")]
    assert "urgent" in sidestep("revisions")
    assert sidestep.json("sidecar", "list") == []
    assert "SIDECAR" in sidestep("sidecar", "list")


def test_events_of_a_subject_are_kept_by_whoever_does_not_mention_them(sidestep: Sidestep) -> None:
    sidestep("subject", "put", "alice", "--method", "totp")
    sidestep("subject", "event", "alice", "--sim-change", "--at", "2026-01-02T03:04:05Z")
    sidestep("subject", "event", "alice", "--recovery", "--at", "2026-01-03T00:00:00Z")
    document = sidestep.file(
        "alice.yaml",
        "apiVersion: sidestep.dev/v1\nkind: Subject\nmetadata: {name: alice}\nspec: {state: SUBJECT_STATE_ACTIVE}\n",
    )
    sidestep("subject", "put", "--file", document)
    alice = sidestep.json("subject", "get", "alice")
    assert alice["simChangeTime"] == "2026-01-02T03:04:05Z"
    assert alice["recoverTime"] == "2026-01-03T00:00:00Z"
    assert "authenticatorChangeTime" not in alice
    sidestep("subject", "event", "alice", "--new-authenticator")
    assert "authenticatorChangeTime" in sidestep.json("subject", "get", "alice")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("alice",), 2, "name the event"),
        (("alice", "--recovery", "--at", "2999-01-01T00:00:00Z"), 1, "subject.recover_time: lies in the future"),
    ],
    ids=["no event", "in the future"],
)
def test_an_event_that_cannot_be_is_refused(sidestep: Sidestep, args: tuple[str, ...], code: int, said: str) -> None:
    sidestep("subject", "put", "alice")
    assert said in sidestep("subject", "event", *args, code=code)


@pytest.mark.parametrize(("cool_off", "code"), [("0s", 0), ("31536000s", 0), ("31536001s", 1), ("-1s", 1)])
def test_the_cool_off_has_bounds(sidestep: Sidestep, cool_off: str, code: int) -> None:
    document = sidestep.file(
        "settings.yaml",
        f"apiVersion: sidestep.dev/v1\nkind: Settings\nmetadata: {{name: default}}\nspec: {{cool_off: {cool_off}}}\n",
    )
    assert ("cool_off" in sidestep("apply", "-f", document, code=code)) == (code != 0)
