"""What guards and rate limits add to a decision: the same requests decided with all of them on, and with none.

`python -m bench.guards [--rounds N] [--decisions N]` writes bench/results/guards.json and guards.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from engine.decide import decide
from engine.facts import Binding, Data, Device, Facts, Posture, Session, Staleness, Subject
from engine.policy import parse_policy
from engine.rules import TenantRules, compile_policy
from sidecar.gather.gatherer import Gathered
from sidecar.gather.request import Checked
from sidecar.guard.buckets import Limit, Limits
from sidecar.guard.guards import Guards

RESULTS = Path(__file__).resolve().parent / "results"
BUDGET_US = 10.0
SUBJECTS = 2000
_BEGIN = 1_800_000_000.0
# A hundred requests a second.
_TICKS = count()
_LIMITS = Limits(Limit(1000.0, 1000), Limit(1000.0, 1000), Limit(1e6, 1e6))
_GUARDS = """
  guards:
    sharedFingerprint: {}
    manyNetworks: {}
    impossibleTravel: {}
    probing: {}
    canary: {subjects: [honeypot], actions: [payments.trap]}
    exemptionBurst: {}
    inconsistentFingerprint: {}
"""
_POLICY = """
apiVersion: sidestep.dev/v1
kind: Policy
metadata: {name: payments, tenant: acme}
spec:
  match: {actions: ["payments.*"]}
  require: {acr: nist-aal2, maxAge: 12h}
  triggers:
    - {name: unknown-device, when: "!device.known", require: {acr: phr, maxAge: 5m}}
    - {name: high-value, when: "context.amount.value > 5000.0", require: {acr: phr, maxAge: 5m}}
"""


def main() -> int:
    """Runs it; returns 1 if the budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--decisions", type=int, default=20_000)
    arguments = parser.parse_args()
    result = _measure(arguments.rounds, arguments.decisions)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "guards.json").write_text(json.dumps(result, indent=2) + "\n")
    table = _table(result)
    (RESULTS / "guards.md").write_text(table)
    print(table)
    return int(any(row["added_us"] > BUDGET_US for row in result["cases"]))


def _measure(rounds: int, decisions: int) -> dict[str, Any]:
    plain, guarded = _rules(""), _rules(_GUARDS)
    cases = []
    for name, device in (
        ("device with a key proof", Device(presented=True, binding=Binding.BOUND, id="laptop", trust=1.0)),
        ("unknown device", Device(presented=True)),
    ):
        off, on = (Guards(), plain, device, None), (Guards(), guarded, device, _LIMITS)
        for contender in (off, on):
            _round(*contender, SUBJECTS)
        without: list[float] = []
        with_all: list[float] = []
        for number in range(rounds):
            # Whoever goes first goes second next time.
            for contender, spent in ((off, without), (on, with_all))[:: 1 if number % 2 else -1]:
                spent.append(_round(*contender, decisions))
        added = [full_us - bare_us for full_us, bare_us in zip(with_all, without, strict=True)]
        quarters = statistics.quantiles(added, n=4)
        cases.append(
            {
                "case": name,
                "off_us": statistics.median(without),
                "on_us": statistics.median(with_all),
                "added_us": statistics.median(added),
                "added_quartiles_us": [quarters[0], quarters[2]],
                "added_rounds_us": added,
            }
        )
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rounds": rounds,
        "decisions": decisions,
        "subjects": SUBJECTS,
        "cases": cases,
    }


def _rules(guards: str) -> TenantRules:
    return TenantRules([compile_policy(parse_policy(_POLICY + guards).document, 1)])


def _asked(rules: TenantRules, device: Device, number: int, limits: Limits | None) -> Gathered:
    """One subject's request, as `gather` leaves it: 13 components, an address, a place, an amount."""
    subject = f"user-{number:06}"
    values = {
        "context.amount.value": 120.0,
        "context.amount.currency": "EUR",
        "context.lat": 52.5,
        "context.lon": 13.4,
    }
    shown = {"os": "macOS", "platform": "MacIntel", "canvas": f"c-{number}", "webgl": "Apple M3"}
    shown |= {f"component-{place}": str(place) for place in range(9)}
    address = bytes([10, number >> 8 & 255, number & 255, 1])
    checked = Checked("acme", subject, "payments.transfer", "s1", "", None, device.id, address, None, "", values, None)
    facts = Facts(
        now=_BEGIN + next(_TICKS) * 0.01,
        tenant="acme",
        action="payments.transfer",
        data=Data(1, 1, 1, 1, 1.0, Staleness.FRESH),
        posture=Posture.LOW,
        subject=Subject(known=True),
        device=replace(device, id=f"laptop-{number}") if device.id else device,
        session=Session(presented=True),
        values=values,
    )
    return Gathered(
        facts, rules, None, asked=checked, device_evidence=repr(shown).encode(), limits=limits, fingerprint=shown
    )


def _round(guards: Guards, rules: TenantRules, device: Device, limits: Limits | None, decisions: int) -> float:
    """Microseconds of the median decision. Each request is made just before, as `gather` would; that is not measured. The
    median, since a machine that does other things too takes its time now and then."""
    clock = time.perf_counter_ns
    spent = []
    for number in range(decisions):
        asked = _asked(rules, device, number % SUBJECTS, limits)
        begun = clock()
        examined = guards.examine(asked)
        decision = decide(examined.gathered.facts, asked.rules)
        guards.learn(examined, decision)
        spent.append(clock() - begun)
    return statistics.median(spent) / 1000.0


def _table(result: dict[str, Any]) -> str:
    lines = [
        "# What guards and rate limits cost",
        "",
        "Microseconds of the median decision, without `gather` and the record, which they do not touch: `decide` alone, "
        f"and with all seven guards and all three rate limits. {result['rounds']} alternating rounds of "
        f"{result['decisions']:,} decisions of {result['subjects']:,} subjects in one process.",
        "",
        "| | off | on | added, median (middle half) | budget 10 |",
        "|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        low, high = case["added_quartiles_us"]
        met = "met" if case["added_us"] <= BUDGET_US else "missed"
        added = f"{case['added_us']:.1f} ({low:.1f}-{high:.1f})"
        lines.append(f"| {case['case']} | {case['off_us']:.1f} | {case['on_us']:.1f} | {added} | {met} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
