"""What came of deciding recorded decisions again: the counts, with examples. It stays small however many there were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from rich.text import Text

from controlplane.cli.output import console, print_table
from engine.candidate import responsible
from engine.decision import Decision, Outcome
from engine.facts import Facts

# More differences than anyone reads; their number is told all the same.
MAX_DIFFERENCES = 1_000
_NEWLY = {Outcome.ALLOW: "allowed", Outcome.STEP_UP: "challenged", Outcome.DENY: "denied"}


class Recorded(NamedTuple):
    """A decision as it was recorded. `name`: of the sidecar, may be empty."""

    id: bytes
    sidecar: str
    facts: Facts
    decision: Decision

    def about(self) -> dict[str, Any]:
        """Which decision it is, as data."""
        data = self.facts.data
        return {
            "decision": str(UUID(bytes=self.id)),
            "time": datetime.fromtimestamp(self.facts.now, UTC).isoformat().replace("+00:00", "Z"),
            "sidecar": self.sidecar,
            "tenant": self.facts.tenant,
            "action": self.facts.action,
            "revision": f"{data.epoch}:{data.revision}",
        }


class Shift(NamedTuple):
    """Decisions that change their outcome, because of one clause."""

    before: Outcome
    after: Outcome
    clause: str


class Tally:
    """Counts. `candidate`: the name of the policy that was tried, None if none was; `examples`: how many to keep of each kind."""

    def __init__(self, candidate: str | None, examples: int) -> None:
        self._examples = examples
        self.candidate = candidate
        self.identical = 0
        self.different = 0
        self.differences: list[dict[str, Any]] = []
        self.undetermined: Counter[str] = Counter()
        # With a candidate: what it was compared for, and of what kept its outcome, how many differ in something else.
        self.compared = 0
        self.untried: Counter[str] = Counter()
        self.outcomes: Counter[tuple[Outcome, Outcome]] = Counter()
        self.otherwise = 0
        self.shifts: Counter[Shift] = Counter()
        self.examples: dict[Shift, list[dict[str, Any]]] = {}

    @property
    def replayed(self) -> int:
        """How many were decided again by the rules of then."""
        return self.identical + self.different

    @property
    def unchanged(self) -> int:
        """How many keep their outcome under the candidate."""
        return sum(count for (before, after), count in self.outcomes.items() if before is after)

    def newly(self, outcome: Outcome) -> int:
        """How many come to this outcome under the candidate that had another one."""
        return sum(count for (before, after), count in self.outcomes.items() if after is outcome is not before)

    def again(self, recorded: Recorded, found: Sequence[tuple[str, str, str]]) -> None:
        """A decision was decided again; `found` are its differences (field, recorded, replayed)."""
        if not found:
            self.identical += 1
            return
        self.different += 1
        if len(self.differences) < MAX_DIFFERENCES:
            fields = [{"field": field, "recorded": before, "replayed": after} for field, before, after in found]
            self.differences.append({**recorded.about(), "fields": fields})

    def tried(self, recorded: Recorded, would_be: Decision) -> None:
        """What the candidate would have made of a decision."""
        before, after = recorded.decision, would_be
        self.compared += 1
        self.outcomes[before.outcome, after.outcome] += 1
        if before.outcome is after.outcome:
            rests_on = (before.basis, before.grant, before.requirement, before.challenge)
            self.otherwise += rests_on != (after.basis, after.grant, after.requirement, after.challenge)
            return
        for clause in responsible(before, after):
            shift = Shift(before.outcome, after.outcome, clause)
            self.shifts[shift] += 1
            kept = self.examples.setdefault(shift, [])
            if len(kept) < self._examples:
                reasons = {"was": [str(reason) for reason in before.reasons], "would": [str(r) for r in after.reasons]}
                kept.append({**recorded.about(), **reasons})

    def as_dict(self) -> dict[str, Any]:
        """All of it as data."""
        told: dict[str, Any] = {
            "replayed": self.replayed,
            "identical": self.identical,
            "different": self.different,
            "undetermined": _counts(self.undetermined),
            "differences": self.differences,
        }
        if self.candidate is not None:
            told["candidate"] = {
                "policy": self.candidate,
                "compared": self.compared,
                "undetermined": _counts(self.untried),
                "unchanged": self.unchanged,
                "unchangedOtherwise": self.otherwise,
                **{f"newly{_NEWLY[outcome].capitalize()}": self.newly(outcome) for outcome in Outcome},
                "outcomes": [
                    {"was": before.value, "would": after.value, "decisions": count}
                    for (before, after), count in _by_count(self.outcomes)
                ],
                "clauses": [
                    {
                        "was": shift.before.value,
                        "would": shift.after.value,
                        "clause": shift.clause,
                        "decisions": count,
                        "examples": self.examples[shift],
                    }
                    for shift, count in _by_count(self.shifts)
                ],
            }
        return told


def _counts(causes: Counter[str]) -> dict[str, int]:
    return {cause: count for cause, count in sorted(causes.items()) if count}


def _by_count(counted: Counter[Any]) -> list[tuple[Any, int]]:
    """The most frequent first; equal ones in an order that does not depend on the input's."""
    return sorted(counted.items(), key=lambda item: (-item[1], [getattr(part, "value", part) for part in item[0]]))


def show_tally(tally: Tally, meanings: Mapping[str, str]) -> None:
    """Prints it for people. `meanings` say what each cause of undetermined decisions is."""
    out = console()
    for difference in tally.differences:
        out.print(Text(_line(difference), style="bold"))
        for field in difference["fields"]:
            out.print(
                Text(f"  {field['field']}: recorded {field['recorded']}, replayed {field['replayed']}"), soft_wrap=True
            )
    if tally.different > len(tally.differences):
        out.print(f"... and {tally.different - len(tally.differences)} more")
    out.print(
        f"{_decisions(tally.replayed)} replayed, {tally.identical} identical"
        + (f", {tally.different} different" if tally.different else "")
    )
    _show_causes("could not be decided again", tally.undetermined, meanings)
    if tally.candidate is not None:
        _show_candidate(tally, meanings)


def _show_candidate(tally: Tally, meanings: Mapping[str, str]) -> None:
    out = console()
    out.print()
    out.print(Text(f"{tally.candidate} on {_decisions(tally.compared)}", style="bold"))
    for outcome in Outcome:
        came_from = ", ".join(
            f"{count} {before.value}"
            for (before, after), count in _by_count(tally.outcomes)
            if after is outcome is not before
        )
        line = f"  {tally.newly(outcome):>8}  newly {_NEWLY[outcome]}"
        out.print(Text(line + (f" (were {came_from})" if came_from else "")))
    otherwise = f" ({tally.otherwise} of them on another basis, requirement or challenge)" if tally.otherwise else ""
    out.print(Text(f"  {tally.unchanged:>8}  unchanged{otherwise}"))
    _show_causes("cannot be told", tally.untried, meanings)
    if not tally.shifts:
        return
    out.print()
    print_table(
        [
            ("WAS", lambda item: item[0].before.value),
            ("WOULD BE", lambda item: item[0].after.value),
            ("BECAUSE OF", lambda item: item[0].clause),
            ("DECISIONS", lambda item: str(item[1])),
        ],
        _by_count(tally.shifts),
    )
    for shift, _ in _by_count(tally.shifts):
        if tally.examples[shift]:
            out.print()
            out.print(Text(f"{shift.before.value} to {shift.after.value} because of {shift.clause}", style="bold"))
        for example in tally.examples[shift]:
            out.print(Text(f"  {_line(example)}"), soft_wrap=True)
            for word in ("was", "would"):
                out.print(
                    Text(f"    {word}: ", style="dim").append("; ".join(example[word]), style="not dim"), soft_wrap=True
                )


def _show_causes(what: str, causes: Counter[str], meanings: Mapping[str, str]) -> None:
    if not causes.total():
        return
    out = console()
    out.print(f"{causes.total()} {what}:")
    for cause, count in sorted(causes.items()):
        if count:
            out.print(Text(f"  {count:>8}  {meanings[cause]}"))


def _decisions(count: int) -> str:
    return f"{count} decision{'' if count == 1 else 's'}"


def _line(about: Mapping[str, Any]) -> str:
    where = f", sidecar {about['sidecar']}" if about["sidecar"] else ""
    return f"{about['decision']}  {about['time']}  {about['action']} ({about['tenant']}, revision {about['revision']}{where})"
