"""`sidestep simulate`, in one process, without a server."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from controlplane.cli.main import cli

POLICY = Path(__file__).parents[3] / "examples" / "policies" / "browsing.yaml"


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["simulate", *args])
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    return result.stdout if code == 0 else result.stderr


def as_json(*args: str) -> Any:
    return json.loads(run(*args, "-o", "json"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logins") / "logins.csv"
    run("generate", str(path), "--users", "60", "--days", "4", "--attacks", "1", "--seed", "3")
    return path


def test_generate_writes_logins_and_the_truth_beside_them(made: Path) -> None:
    with made.open(newline="") as text, made.with_name("logins.truth.csv").open(newline="") as truth:
        logins, entries = list(csv.DictReader(text)), list(csv.DictReader(truth))
    assert [login["index"] for login in logins] == [str(row) for row in range(len(logins))]
    assert 0 < len(entries) < len(logins)
    told = as_json(
        "generate", str(made.with_name("again.csv.gz")), "--users", "60", "--days", "4", "--attacks", "1", "--seed", "3"
    )
    assert (told["logins"], told["attackLogins"]) == (len(logins), len(entries))
    assert told["truth"].endswith("again.truth.csv")


def test_rba_plays_a_file_and_reports(made: Path) -> None:
    report = as_json("rba", str(made))
    assert len(report["styles"]) == 6
    assert report["honest"]["stillNotLetIn"] == 0
    assert "credential-stuffing" in run("rba", str(made))


def test_rba_stops_at_the_limit_and_at_so_many_people(made: Path) -> None:
    assert as_json("rba", str(made), "--limit", "5")["decisions"] <= 10
    one = as_json("rba", str(made), "--users", "1")
    assert 0 < one["decisions"] < as_json("rba", str(made))["decisions"] / 4


def test_rba_decides_by_the_policy_it_is_given(made: Path) -> None:
    honest = as_json("rba", str(made), "--limit", "40", "--policy", str(POLICY), "--action", "basket.view")["honest"]
    assert honest["challenged"] == honest["exempted"] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("rba", "missing.csv"), "error: missing.csv: No such file or directory"),
        (("rba", "bad.csv"), "error: bad.csv: line 1: lacks the columns"),
        (("rba", "bad.csv", "--action", "sign in"), "error: --action: "),
        (("rba", "bad.csv", "--truth", "missing.csv"), "error: "),
        (("rba", "good.csv", "--truth", "bad.csv"), "error: bad.csv: line 1: the columns are not row, style, episode"),
        (("rba", "bad.csv", "--policy", "bad.csv"), "error: bad.csv"),
        (("rba", "bad.csv", "--policy", str(POLICY), "--policy", str(POLICY)), "a second policy named 'browsing'"),
        (("generate", "nowhere/x.csv"), "error: nowhere/x.csv: its folder does not exist"),
        (("generate", "x.csv", "--days", "1"), "error: "),
    ],
)
def test_faults_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text("index,User ID\n1,2\n")
    run("generate", "good.csv", "--users", "10", "--days", "2", "--attacks", "0")
    told = run(*args, code=2)
    assert message in told
    assert told.startswith("error: ")
    assert told.count("error: ") == 1
