"""`sidestep apply` and the documents it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.admin import AdminServer

if TYPE_CHECKING:
    from conftest import Sidestep

STREAM = """# everything acme needs
apiVersion: sidestep.dev/v1
kind: Policy
metadata: {name: payments, tenant: acme}
spec:
  match: {actions: ["payments.*"]}   # a comment that must survive
  require: {acr: nist-aal2, maxAge: 12h}
---
apiVersion: sidestep.dev/v1
kind: Grant
metadata: {name: g1}
spec:
  state: GRANT_STATE_ACTIVE
  role: staff
  actions: ["payments.*"]
  expireTime: 2090-01-01T00:00:00Z
  ceiling: {acr: nist-aal2, maxAge: 3600s}
---
apiVersion: sidestep.dev/v1
kind: Signal
spec: {kind: SIGNAL_KIND_IP, value: 203.0.113.0/24, source: mine, score: 70, expireTime: 2090-01-01T00:00:00Z}
---
apiVersion: sidestep.dev/v1
kind: Posture
spec: {level: POSTURE_LEVEL_ELEVATED}
...
---
apiVersion: sidestep.dev/v1
kind: Key
metadata: {name: fp1, tenant: acme}
spec: {kind: KEY_KIND_FINGERPRINT}
"""


def test_a_stream_of_resources_is_applied_in_order(sidestep: Sidestep) -> None:
    path = sidestep.file("all.yaml", STREAM)
    results = sidestep.json("apply", "-f", path)
    assert [(item["name"].removeprefix("tenants/acme/"), item["changed"]) for item in results] == [
        ("policies/payments", True),
        ("grants/g1", True),
        ("signals/ip~203.0.113.0_24~mine", True),
        ("postures/default", True),
        ("keys/fp1", True),
    ]
    assert all("unchanged" in line for line in sidestep("apply", "-f", path).splitlines())
    source = sidestep("policy", "get", "payments", "--source")
    assert source == STREAM.split("---\n")[0]


def test_yaml_output_can_be_applied_again(sidestep: Sidestep) -> None:
    sidestep("apply", "-f", sidestep.file("all.yaml", STREAM))
    groups = ("policy", "grant", "signal", "key")
    dumped = (
        "---\n".join(sidestep(group, "list", "-o", "yaml") for group in groups)
        + "---\n"
        + sidestep("posture", "get", "-o", "yaml")
    )
    shown = sidestep("apply", "-f", "-", stdin=dumped)
    assert shown.count("unchanged") == 5
    sidestep("grant", "delete", "g1")
    assert sidestep("apply", "-f", "-", stdin=dumped).count("unchanged") == 4


def test_dry_run_writes_nothing(sidestep: Sidestep) -> None:
    assert "(dry run)" in sidestep("apply", "--dry-run", "-f", sidestep.file("all.yaml", STREAM))
    assert sidestep.json("revisions") == []


def test_a_device_may_come_with_the_key_its_fingerprint_is_hashed_with(sidestep: Sidestep) -> None:
    spec = "spec: {subject: alice, fingerprint: {os: macOS}}"
    device = f"---\napiVersion: sidestep.dev/v1\nkind: Device\nmetadata: {{name: d1}}\n{spec}\n"
    path = sidestep.file("all.yaml", STREAM + device)
    assert "devices/d1 changed (dry run)" in sidestep("apply", "--dry-run", "-f", path)
    sidestep("apply", "-f", path)
    assert sidestep.json("device", "get", "d1")["keyId"] == "fp1"
    assert sidestep("apply", "-f", path).count("unchanged") == 6


def test_nothing_is_written_when_the_server_would_refuse_one(sidestep: Sidestep, server: AdminServer) -> None:
    path = sidestep.file("all.yaml", STREAM.replace("score: 70", "score: 101"))
    assert sidestep("apply", "-f", path, code=1) == f"error: {path}:19: signal.score: 101 is not between 0 and 100\n"
    assert sidestep.json("revisions") == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("kind: Grant", "kind: Grnt", "10:7: kind: must be one of Policy, Grant"),
        ("metadata: {name: g1}", "metadata: {}", "11:11: metadata.name: must not be empty"),
        ("metadata: {name: g1}", "metadata: {name: g1, tenant: other}", "metadata.tenant: 'other' is not the tenant"),
        ("metadata: {name: g1}", "metadata: {nam: g1}", "unknown key 'nam'"),
        ("  role: staff", "  rle: staff", 'spec: Message type "sidestep.v1.Grant" has no field named "rle"'),
        ("GRANT_STATE_ACTIVE", "ACTIVE", "13:10: spec.state: Invalid enum value ACTIVE"),
        ("maxAge: 3600s", "maxAge: 1h", '17:37: spec.ceiling.maxAge: Duration must end with letter "s": 1h'),
        ("score: 70", "score: [", "not YAML"),
        ("level: POSTURE_LEVEL_ELEVATED", "level: a, level: b", "spec.level: given twice"),
        ("apiVersion: sidestep.dev/v1\nkind: Posture", "kind: Posture", "apiVersion: must be sidestep.dev/v1"),
        ("spec: {kind: KEY_KIND_FINGERPRINT}", "spec: {name: x}", "spec.name: the name is in metadata"),
    ],
)
def test_a_faulty_document_is_refused_with_its_place(sidestep: Sidestep, old: str, new: str, problem: str) -> None:
    assert old in STREAM
    path = sidestep.file("all.yaml", STREAM.replace(old, new))
    shown = sidestep("apply", "-f", path, code=2)
    assert shown.startswith(f"error: {path}:")
    assert problem in shown.splitlines()[0]
    assert sidestep.json("revisions") == []


def test_files_of_the_wrong_shape_are_refused(sidestep: Sidestep) -> None:
    assert "has no document" in sidestep("apply", "-f", sidestep.file("empty.yaml", "# nothing\n---\n"), code=2)
    grant = sidestep.file("grant.yaml", STREAM.split("---\n")[1])
    assert "kind: must be Subject" in sidestep("subject", "put", "-f", grant, code=2)
    sidestep("grant", "put", "-f", grant)
    assert "give exactly one of ID or --file" in sidestep("grant", "put", "g1", "-f", grant, code=2)
    two = sidestep.file("two.yaml", "apiVersion: sidestep.dev/v1\nkind: Settings\nspec: {}\n---\n" * 2)
    assert "has 2 documents, not one" in sidestep("settings", "put", two, code=2)
    binary = sidestep.folder / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in sidestep("apply", "-f", str(binary), code=2)
