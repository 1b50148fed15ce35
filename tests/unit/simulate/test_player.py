"""Playing logins: the decision path is the real one, and so is what happens after a challenge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.decision import Basis, Outcome
from sidecar.simulate.player import STEP_UP_TAKES_S, Played, Player
from sidecar.simulate.rba import Login, Truth
from sidecar.simulate.score import TAKEOVER, rehearse

POLICY = (Path(__file__).parents[3] / "sidecar" / "simulate" / "signin.yaml").read_text()
AT = 1_600_000_000.0
LOGIN = Login(
    at=AT,
    user="7",
    rtt_ms=None,
    ip="192.0.2.7",
    country="NO",
    region="",
    city="",
    asn=64500,
    agent="Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/85.0.4183 Safari/537.36",
    browser="Chrome 85.0.4183",
    os="Windows 10",
    device="desktop",
    successful=True,
    attack_ip=False,
    takeover=False,
)


@pytest.fixture
def player(tmp_path: Path) -> Iterator[Player]:
    with Player(tmp_path, "acme", {"signin": POLICY}) as running:
        yield running


def later(hours: float, **changes: object) -> Login:
    return LOGIN._replace(at=AT + hours * 3600.0, **changes)  # type: ignore[arg-type]


def play(player: Player, *logins: Login) -> list[Played]:
    return list(player.play(enumerate(logins)))


def told(played: list[Played]) -> list[tuple[int, bool, str]]:
    return [(one.row, one.again, one.basis.value) for one in played]


def test_a_browser_is_known_after_a_strong_authentication(player: Player) -> None:
    played = play(player, LOGIN, later(24))
    assert told(played) == [(0, False, "CHALLENGE"), (0, True, "ASSURANCE_SATISFIED"), (1, False, "EXEMPTION_GRANT")]
    assert played[1].at == AT + STEP_UP_TAKES_S


def test_an_update_is_the_same_browser_and_another_is_not(player: Player) -> None:
    newer = {"browser": "Chrome 86.0.1", "agent": LOGIN.agent.replace("85.0.4183", "86.0.1")}
    played = play(player, LOGIN, later(1, **newer), later(2, os="Mac OS X 10.15"), later(3, user="8"))
    assert [basis for _, again, basis in told(played) if not again] == [
        "CHALLENGE", "EXEMPTION_GRANT", "CHALLENGE", "CHALLENGE"
    ]  # fmt: skip


def test_validation_lapses(player: Player) -> None:
    assert told(play(player, LOGIN, later(31 * 24)))[-2:] == [(1, False, "CHALLENGE"), (1, True, "ASSURANCE_SATISFIED")]


def test_who_took_over_cannot_step_up(player: Player) -> None:
    played = play(player, LOGIN, later(1, takeover=True, device="mobile"), later(2, device="mobile"))
    assert [(one.row, one.again) for one in played] == [(0, False), (0, True), (1, False), (2, False), (2, True)]
    assert played[2].outcome is Outcome.STEP_UP


def test_a_wrong_password_is_asked_about_and_never_exempted(player: Player) -> None:
    played = play(player, LOGIN, later(1, successful=False))
    assert played[-1].outcome is Outcome.STEP_UP
    assert not played[-1].again


def test_what_is_asked_after_a_wrong_password_may_be_another_action(tmp_path: Path) -> None:
    bare = POLICY.replace("name: signin,", "name: refused,").replace("signin.*", "refused.*")
    bare = bare.split("  exemptions:")[0].replace("require: {acr: nist-aal2, maxAge: 12h}", "require: {}")
    policies = {"signin": POLICY, "refused": bare}
    with Player(tmp_path, "acme", policies, action="signin.password", refused_action="refused.password") as player:
        played = play(player, LOGIN._replace(successful=False), later(1))
    # Nothing is required, but without a session the top requirement is.
    assert [one.outcome for one in played[:2]] == [Outcome.STEP_UP, Outcome.STEP_UP]
    assert not played[1].again


def test_a_row_out_of_order_is_played_at_the_time_of_the_one_before(player: Player) -> None:
    assert [one.at for one in play(player, later(2), LOGIN) if not one.again] == [AT + 7200.0, AT + 7200.0]


def test_nothing_known_is_nothing_favourable(player: Player) -> None:
    bare = {"agent": "", "browser": "", "os": "", "device": "", "ip": "", "country": "", "asn": None}
    played = play(player, LOGIN, later(1, **bare), later(2, **bare))
    assert all(one.basis is not Basis.EXEMPTION_GRANT for one in played)


def test_taken_over_accounts_are_attacks_where_no_truth_is_known(player: Player) -> None:
    logins = [LOGIN, later(1, takeover=True), later(2, takeover=True, os="Mac OS X 10.15"), later(3, attack_ip=True)]
    report = rehearse(player, enumerate(logins), None).as_dict()
    (style,) = report["styles"]
    assert (style["style"], style["attacks"], style["caught"], style["letIn"]) == (TAKEOVER, 1, 1, 1)
    assert style["timeToCatch"] == {"medianMinutes": 60.0, "maxMinutes": 60.0, "medianLogins": 2, "maxLogins": 2}
    assert (report["honest"]["logins"], report["unclear"]) == (1, 1)


def test_the_truth_is_matched_by_row(player: Player) -> None:
    logins = [LOGIN, later(1), later(2, takeover=True), later(3)]
    truths = iter([Truth(2, "style", "style-1"), Truth(9, "style", "style-2")])
    # Rows 4 to 7 are of others and were left out.
    rows = zip([0, 1, 2, 8], logins, strict=True)
    report = rehearse(player, rows, truths).as_dict()
    assert [(one["style"], one["attacks"], one["logins"], one["letIn"]) for one in report["styles"]] == [
        ("style", 1, 1, 1)
    ]
    assert (report["honest"]["logins"], report["honest"]["exempted"]) == (3, 2)
