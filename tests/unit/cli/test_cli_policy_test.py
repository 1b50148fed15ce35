"""`sidestep policy test` and `policy explain`, which need no server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from controlplane.cli.main import cli

POLICY = """apiVersion: sidestep.dev/v1
kind: Policy
metadata: {name: payments, tenant: acme}
spec:
  match: {actions: ["payments.*"]}
  require: {acr: nist-aal2, maxAge: 12h}
  methods: [webauthn, totp]
"""
STRICTER = POLICY.replace("name: payments", "name: stricter").replace("nist-aal2", "nist-aal3")
CASES = """defaults: {action: payments.transfer}
cases:
  - name: logged in this morning
    facts: {authentications: [{acr: nist-aal2, at: now-3h}]}
    expect: {outcome: ALLOW, basis: ASSURANCE_SATISFIED}
  - name: logged in yesterday
    facts: {authentications: [{acr: nist-aal2, at: now-12h1s}]}
    expect: {outcome: STEP_UP, reasons: [AUTHENTICATION_TOO_OLD]}
"""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policy.yaml").write_text(POLICY)
    Path("stricter.yaml").write_text(STRICTER)
    Path("cases.yaml").write_text(CASES)


def run(*args: str) -> Result:
    # No server there: these commands must not ask one.
    return CliRunner(env={"SIDESTEP_SERVER": "127.0.0.1:1"}).invoke(cli, ["policy", *args])


def test_cases_that_come_out_as_expected_exit_with_0() -> None:
    result = run("test", "policy.yaml", "cases.yaml")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "ok   logged in this morning",
        "ok   logged in yesterday",
        "2 cases, 2 as expected, 0 not",
    ]


def test_a_case_that_comes_out_otherwise_exits_with_1_and_says_how() -> None:
    Path("cases.yaml").write_text(CASES.replace("now-3h", "now-13h"))
    result = run("test", "policy.yaml", "cases.yaml")
    assert result.exit_code == 1
    assert "FAIL logged in this morning" in result.stdout
    assert "outcome: expected ALLOW, got STEP_UP" in result.stdout
    assert "2 cases, 1 as expected, 1 not" in result.stdout
    answer = json.loads(run("test", "policy.yaml", "cases.yaml", "-o", "json").stdout)
    assert [case["passed"] for case in answer] == [False, True]
    assert answer[0]["actual"]["waived_acrs"] == []


def test_a_policy_beside_it_counts_too() -> None:
    result = run("test", "policy.yaml", "cases.yaml", "--with", "stricter.yaml", "--case", "logged in this morning")
    assert result.exit_code == 1
    assert "1 cases, 0 as expected, 1 not" in result.stdout


def test_explain_shows_steps_and_the_smallest_change() -> None:
    result = run("explain", "policy.yaml", "cases.yaml", "--case", "logged in yesterday")
    assert result.exit_code == 0, result.stderr
    assert "STEP_UP  CHALLENGE" in result.stdout
    assert "AUTHENTICATION_TOO_OLD payments/base" in result.stdout
    assert "to get ALLOW:" in result.stdout
    assert "this morning" not in result.stdout
    explained = json.loads(run("explain", "policy.yaml", "cases.yaml", "-o", "json").stdout)
    assert [step["step"] for step in explained[1]["explanation"]["steps"]][:4] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("policy.yaml", "require:", "rquire:", "policy.yaml:6:11: spec.rquire: unknown key"),
        ("stricter.yaml", "require:", "rquire:", "stricter.yaml:6:11: spec.rquire: unknown key"),
        ("cases.yaml", "outcome: ALLOW", "outcom: ALLOW", "cases.yaml:5:22: cases[0].expect.outcom: unknown key"),
        ("cases.yaml", "AUTHENTICATION_TOO_OLD", "TOO_OLD", "'TOO_OLD' is not a reason code"),
    ],
)
def test_a_faulty_file_is_told_with_its_place(file: str, old: str, new: str, problem: str) -> None:
    Path(file).write_text(Path(file).read_text().replace(old, new))
    result = run("test", "policy.yaml", "cases.yaml", "--with", "stricter.yaml")
    assert result.exit_code == 2
    assert problem in result.stderr


def test_an_unknown_case_is_refused() -> None:
    result = run("test", "policy.yaml", "cases.yaml", "--case", "nonsense")
    assert (result.exit_code, result.stderr) == (2, "error: --case: cases.yaml has no case 'nonsense'\n")
