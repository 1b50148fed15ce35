"""Honest life with six styles of attack, played through the decision path: what is caught, how soon, and whom it disturbs.

`python -m bench.mimicry [--users N] [--days N] [--attacks N] [--seeds N ...] [--policy FILE]` writes bench/results/mimicry.json
and mimicry.md. The limits of the built-in policy were chosen by looking at seeds 1 and 2, so the default is others.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.policy import parse_policy
from sidecar.simulate.history import tell
from sidecar.simulate.player import Player
from sidecar.simulate.score import rehearse_told

RESULTS = Path(__file__).resolve().parent / "results"
POLICY = Path(__file__).resolve().parents[1] / "examples" / "policies" / "signin.yaml"
AIM = 0.005
"""Most of the honest logins that guards may disturb."""


def main() -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--attacks", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--policy", type=Path, default=POLICY)
    arguments = parser.parse_args()
    scale = {name: getattr(arguments, name) for name in ("users", "days", "attacks")}
    runs = [run(seed=seed, policy=arguments.policy.read_text(), **scale) for seed in arguments.seeds]
    result = {"python": platform.python_version(), "machine": platform.machine(), **scale, "runs": runs}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "mimicry.json").write_text(json.dumps(result, indent=2) + "\n")
    table = _table(result)
    (RESULTS / "mimicry.md").write_text(table)
    print(table)
    return 0


def run(users: int, days: int, attacks: int, seed: int, policy: str) -> dict[str, Any]:
    """One story, played by one policy."""
    parsed = parse_policy(policy)
    begun = time.process_time()
    with (
        tempfile.TemporaryDirectory(prefix="sidestep-") as folder,
        Player(Path(folder), parsed.tenant, {parsed.name: policy}) as player,
    ):
        report = rehearse_told(player, tell(users, days, seed, attacks)).as_dict()
    return {"seed": seed, "cpu_s": round(time.process_time() - begun, 1), **report}


def _table(result: dict[str, Any]) -> str:
    lines = [
        "# Mimicry",
        "",
        f"{result['users']} people over {result['days']} days with {result['attacks']} attacks of each style, made up and played "
        "through gather, guards and decide over a real store by `examples/policies/signin.yaml`. An attack is caught with the "
        "first of its logins that a guard was raised on, or whose password was right and that was not let in all the same; times "
        "are from its first login, medians (longest). Let in: of the logins with the right password, how many needed no second "
        f"factor. The aim for honest logins disturbed by guards is under {AIM:.1%}. The policy's limits were chosen with "
        "seeds 1 and 2, and not touched after these were played.",
    ]
    for run in result["runs"]:
        lines += ["", f"## Seed {run['seed']}", "", *_styles(run), "", *_honest(run)]
    return "\n".join(lines) + "\n"


def _styles(run: dict[str, Any]) -> list[str]:
    return [
        "| attack | caught | by guards | caught after | a guard after | let in | guards |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {style['style']} | {style['caught']} of {style['attacks']} | {style['caughtByGuards']} "
            f"| {_when(style['timeToCatch'])} | {_when(style['timeToGuard'])} "
            f"| {style['letIn']} of {style['rightPasswords']} ({style['letInShare'] or 0.0:.1%}) | {', '.join(style['guards'])} |"
            for style in sorted(run["styles"], key=lambda style: str(style["style"]))
        ),
    ]


def _honest(run: dict[str, Any]) -> list[str]:
    honest = run["honest"]
    share = honest["challengedByGuardsShare"]
    others = honest["challengedByGuards"] - honest["challengedByGuardsUnderAttack"]
    return [
        f"{honest['logins']} honest logins with the right password: {honest['exemptedShare']:.1%} without a second factor. "
        f"Disturbed by guards: {honest['challengedByGuards']} ({share:.2%}, {'met' if share < AIM else 'missed'}), of them "
        f"{honest['challengedByGuardsUnderAttack']} on accounts that were under attack; without those {others} "
        f"({others / honest['logins']:.3%}). After stepping up not let in: {honest['stillNotLetIn']} of {honest['steppedUp']}. "
        f"{run['decisions']} decisions, {run['cpu_s']} s of CPU.",
    ]


def _when(times: dict[str, float] | None) -> str:
    if times is None:
        return "-"
    minutes = f"{times['medianMinutes']:.0f} min ({times['maxMinutes']:.0f})"
    return f"{minutes}, login {times['medianLogins']:.0f} ({times['maxLogins']})"


if __name__ == "__main__":
    sys.exit(main())
