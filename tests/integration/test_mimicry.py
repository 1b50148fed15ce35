"""Guards against six styles of attack among honest people, through the real decision path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.simulate.attacks import STYLES
from sidecar.simulate.history import tell
from sidecar.simulate.player import Player
from sidecar.simulate.score import rehearse_told

SIGNIN = Path(__file__).parents[2] / "examples" / "policies" / "signin.yaml"
UNGUARDED = SIGNIN.read_text().split("  guards:")[0] + "  methods: [webauthn, totp, push]\n"


def play(folder: Path, policy: str, *, users: int, days: int, seed: int, each: int) -> dict[str, Any]:
    with Player(folder, "acme", {"signin": policy}) as player:
        return rehearse_told(player, tell(users, days, seed, each)).as_dict()


def by_style(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {style["style"]: style for style in report["styles"]}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return play(tmp_path_factory.mktemp("store"), SIGNIN.read_text(), users=400, days=12, seed=7, each=3)


@pytest.mark.parametrize("style", [style.name for style in STYLES])
def test_every_style_is_caught(guarded: dict[str, Any], style: str) -> None:
    found = by_style(guarded)[style]
    assert found["attacks"] == 3
    assert found["caught"] >= 2
    assert found["caughtByGuards"] >= 1


def test_honest_people_are_hardly_disturbed(guarded: dict[str, Any]) -> None:
    honest = guarded["honest"]
    assert honest["exemptedShare"] > 0.7, "the rest is getting to know their browsers"
    # Attacks are far denser here than in the whole run, and what they copy is their victims' browsers.
    assert honest["challengedByGuardsShare"] < 0.03
    others = honest["challengedByGuards"] - honest["challengedByGuardsUnderAttack"]
    assert others / honest["logins"] < 0.003
    assert honest["stillNotLetIn"] <= 0.002 * honest["steppedUp"]


def test_without_guards_attackers_get_further(guarded: dict[str, Any], tmp_path: Path) -> None:
    """The same story by the same policy: what is different is what the guards do."""
    bare = play(tmp_path, UNGUARDED, users=400, days=12, seed=7, each=3)
    assert bare["honest"]["challengedByGuards"] == 0
    assert not any(style["caughtByGuards"] for style in bare["styles"])
    for style in ("distributed-burst", "stolen-fingerprint"):
        assert by_style(guarded)[style]["letIn"] < 0.6 * by_style(bare)[style]["letIn"], style


@pytest.mark.e2e
def test_two_thousand_people_for_a_month(tmp_path: Path) -> None:
    """A story whose limits were not chosen by looking at it."""
    report = play(tmp_path, SIGNIN.read_text(), users=2000, days=30, seed=3, each=10)
    for style in report["styles"]:
        assert style["caught"] >= 6, style
        assert style["letInShare"] < 0.5, style
    assert report["honest"]["challengedByGuardsShare"] < 0.005
    assert report["honest"]["stillNotLetIn"] <= 0.001 * report["honest"]["steppedUp"]
