"""What came of playing logins: which attacks were caught, how soon and by what, and whom of the honest it cost something.

An attack is caught with the first of its logins that a guard was raised on, or whose password was right and which was not let in
all the same. Its size is bounded by the attacks, not by the logins.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from engine.decision import Basis, Outcome
from sidecar.simulate.history import Told
from sidecar.simulate.player import Played, Player
from sidecar.simulate.rba import Login, Truth

TAKEOVER: Final = "account-takeover"
"""The style of what a file without a truth of its own marks as taken over: one attack for each account."""


UNDER_ATTACK_S: Final = 7 * 86400.0
"""An account counts as under attack for so long after an attacker used its name: guards cannot but ask its owner too."""


class Caught(NamedTuple):
    """When an attack was: minutes since its first login, and how many logins it had made by then."""

    minutes: float
    logins: int


class Attack:
    """One attack as it went. `let_in`: logins that needed no second factor; `let_in_late`: those of them after a guard had been
    raised on any of the attack's logins."""

    __slots__ = ("began_at", "by_guard", "caught", "guards", "let_in", "let_in_late", "logins", "right", "style")

    def __init__(self, style: str, began_at: float) -> None:
        self.style = style
        self.began_at = began_at
        self.logins = self.right = self.let_in = self.let_in_late = 0
        self.caught: Caught | None = None
        self.by_guard: Caught | None = None
        self.guards: Counter[str] = Counter()

    def add(self, played: Played) -> None:
        """Counts one of its logins."""
        self.logins += 1
        self.right += played.login.successful
        now = Caught((played.at - self.began_at) / 60.0, self.logins)
        if played.guards:
            self.by_guard = self.by_guard or now
            self.guards.update(played.guards)
        if played.outcome is Outcome.ALLOW:
            self.let_in += 1
            self.let_in_late += self.by_guard is not None
        elif played.guards or played.login.successful:
            self.caught = self.caught or now


class Score:
    """Counts what was played. `labelled`: the truth is known, so that whatever belongs to no attack is honest."""

    def __init__(self, labelled: bool) -> None:
        self._labelled = labelled
        self.attacks: dict[str, Attack] = {}
        self.decisions = self.wrong_passwords = self.unclear = 0
        # Of the honest with the right password, before stepping up.
        self.honest = self.exempted = self.challenged = self.disturbed = self.disturbed_under_attack = 0
        self.by_guard: Counter[str] = Counter()
        self.disturbed_users: set[str] = set()
        # Findings on them, also those that changed nothing.
        self.raised: Counter[str] = Counter()
        # Names that attackers used, and when last.
        self._attacked: dict[str, float] = {}
        # After stepping up.
        self.returned = self.stuck = 0

    def add(self, played: Played, truth: Truth | None) -> None:
        """Counts one decision; `truth` is what its login was."""
        self.decisions += 1
        login = played.login
        if truth is not None:
            self._attack(truth.episode, truth.style, played)
        elif played.again:
            self.returned += 1
            self.stuck += played.outcome is not Outcome.ALLOW
        elif login.takeover:
            self._attack(login.user, TAKEOVER, played)
        elif login.attack_ip and not self._labelled:
            self.unclear += 1
        elif not login.successful:
            self.wrong_passwords += 1
        else:
            self._honest(played)

    def _attack(self, episode: str, style: str, played: Played) -> None:
        self._attacked[played.login.user] = played.at
        attack = self.attacks.get(episode)
        if attack is None:
            attack = self.attacks[episode] = Attack(style, played.at)
        attack.add(played)

    def _honest(self, played: Played) -> None:
        self.honest += 1
        self.exempted += played.basis is Basis.EXEMPTION_GRANT
        self.challenged += played.outcome is not Outcome.ALLOW
        self.raised.update(played.guards)
        if played.disturbed:
            self.disturbed += 1
            attacked_at = self._attacked.get(played.login.user)
            self.disturbed_under_attack += attacked_at is not None and played.at - attacked_at <= UNDER_ATTACK_S
            self.by_guard.update(played.guards)
            self.disturbed_users.add(played.login.user)

    def as_dict(self) -> dict[str, Any]:
        """All of it, as data. Shares are 0-1, None where there was nothing to share."""
        styles = dict.fromkeys(attack.style for attack in self.attacks.values())
        return {
            "decisions": self.decisions,
            "honest": {
                "logins": self.honest,
                "exempted": self.exempted,
                "exemptedShare": _share(self.exempted, self.honest),
                "challenged": self.challenged,
                "challengedByGuards": self.disturbed,
                "challengedByGuardsShare": _share(self.disturbed, self.honest),
                "challengedByGuard": dict(sorted(self.by_guard.items())),
                "challengedByGuardsUnderAttack": self.disturbed_under_attack,
                "usersChallengedByGuards": len(self.disturbed_users),
                "guardsRaised": dict(sorted(self.raised.items())),
                "steppedUp": self.returned,
                "stillNotLetIn": self.stuck,
                "wrongPasswords": self.wrong_passwords,
            },
            "unclear": self.unclear,
            "styles": [
                _style(style, [attack for attack in self.attacks.values() if attack.style == style]) for style in styles
            ],
        }


def _style(style: str, attacks: list[Attack]) -> dict[str, Any]:
    guards: Counter[str] = Counter()
    for attack in attacks:
        guards.update(dict.fromkeys(attack.guards, 1))
    caught = [attack.caught for attack in attacks if attack.caught is not None]
    by_guard = [attack.by_guard for attack in attacks if attack.by_guard is not None]
    right = sum(attack.right for attack in attacks)
    let_in = sum(attack.let_in for attack in attacks)
    return {
        "style": style,
        "attacks": len(attacks),
        "caught": len(caught),
        "caughtShare": _share(len(caught), len(attacks)),
        "caughtByGuards": len(by_guard),
        "caughtByGuardsShare": _share(len(by_guard), len(attacks)),
        "guards": dict(sorted(guards.items())),
        "logins": sum(attack.logins for attack in attacks),
        "rightPasswords": right,
        "letIn": let_in,
        "letInShare": _share(let_in, right),
        "letInAfterGuard": sum(attack.let_in_late for attack in attacks),
        "timeToCatch": _times(caught),
        "timeToGuard": _times(by_guard),
    }


def _times(found: list[Caught]) -> dict[str, float] | None:
    if not found:
        return None
    minutes, logins = [one.minutes for one in found], [one.logins for one in found]
    return {
        "medianMinutes": round(statistics.median(minutes), 1),
        "maxMinutes": round(max(minutes), 1),
        "medianLogins": statistics.median(logins),
        "maxLogins": max(logins),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None


def rehearse(player: Player, logins: Iterable[tuple[int, Login]], truths: Iterator[Truth] | None) -> Score:
    """Plays logins and counts. `truths`: what belongs to attacks, in rising order of row; None: not known. An entry is taken
    only once the login of its row was."""
    score = Score(truths is not None)
    entries = iter(()) if truths is None else truths
    entry: Truth | None = None
    for played in player.play(logins):
        truth = None
        if not played.again:
            while entry is None or entry.row < played.row:
                entry = next(entries, None)
                if entry is None:
                    entries = iter(())
                    break
            truth = entry if entry is not None and entry.row == played.row else None
        score.add(played, truth)
    return score


def rehearse_told(player: Player, told: Iterable[Told]) -> Score:
    """Plays a story that was just made up."""
    known: list[Truth] = []

    def logins() -> Iterator[tuple[int, Login]]:
        for row, (login, truth) in enumerate(told):
            known[:] = [truth] if truth is not None else []
            yield row, login

    score = Score(labelled=True)
    for played in player.play(logins()):
        # The player asks about a login before it takes the next.
        score.add(played, known[0] if known and not played.again and known[0].row == played.row else None)
    return score
