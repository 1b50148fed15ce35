"""`sidestep decisions` and `subject hash`: recorded decisions against a real AdminService's history of the rules."""

from __future__ import annotations

import gzip
import json
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from msgspec.structs import replace
from sidestep.v1 import admin_pb2 as api
from sidestep.v1 import resources_pb2 as pb

from engine.decide import decide
from engine.facts import Data, Facts, Staleness
from engine.rules import compile_policy
from sidecar.gather.rules import tenant_rules
from sidecar.journal.record import VERSION, Record, encode_record
from sidecar.journal.resource import save_resource
from sidecar.journal.segment import SegmentWriter, list_segments
from tests.fakes.admin import AdminServer
from tests.fakes.journal import read_entries
from tests.fakes.otlp_json import export_request, write_lines
from tests.fakes.records import make_batch, make_record, make_unrecorded
from tests.unit.engine.samples import NOW, PAYMENTS, facts, login

if TYPE_CHECKING:
    from conftest import Sidestep

MIB = 1 << 20
LOWER = PAYMENTS.replace("5000.0", "50.0")


class Trail:
    """A journal folder, filled with decisions made by the rules of a revision."""

    def __init__(self, server: AdminServer, folder: Path) -> None:
        self._server = server
        self.folder = folder
        save_resource(folder, {"service.instance.id": "pod-1"})
        self._writer = SegmentWriter(folder, "w0", 64 * MIB)

    def decide(self, revision: int, asked: Facts, **more: Any) -> Record:
        request = api.GetRulesRequest(
            parent=f"tenants/{asked.tenant}", revision=pb.Revision(epoch=1, revision=revision)
        )
        told = self._server.stub.GetRules(request)
        policies = tuple(compile_policy(policy.document, policy.version) for policy in told.policies)
        asked = replace(asked, data=Data(1, revision, 1, 1, 1.0, Staleness.FRESH))
        record = make_record(
            facts=asked, at=asked.now, decision=decide(asked, tenant_rules(told.settings, policies)), **more
        )
        self.append(record)
        return record

    def append(self, *records: Any) -> None:
        self._writer.append([encode_record(record) for record in records])

    def export(self, path: Path) -> str:
        """The same as a collector's file."""
        write_lines(path, [export_request((name.chain, entry) for name, entry in read_entries(self.folder))])
        return str(path)

    @property
    def path(self) -> str:
        return str(self.folder)


@pytest.fixture
def trail(server: AdminServer, tmp_path: Path) -> Trail:
    return Trail(server, tmp_path / "journal")


def amount(value: float, **more: Any) -> Facts:
    """So many euros, by someone with a second factor and without a grant."""
    values = {"context.amount.value": value, "context.amount.currency": "EUR"}
    return facts(values=values, authentications=(login("nist-aal2"),), **{"grants": (), **more})


def put(sidestep: Sidestep, source: str, name: str = "policy.yaml") -> str:
    path = sidestep.file(name, source)
    sidestep("policy", "put", path)
    return path


# Replay


def test_every_decision_replays_by_the_rules_of_its_time(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, PAYMENTS)
    first = trail.decide(1, amount(100.0))
    put(sidestep, LOWER)
    second = trail.decide(2, amount(100.0))
    sidestep("grant", "put", "g1", "--subject", "alice", "--action", "*", "--acr", "nist-aal2", "--max-age", "1h", "--expires", "+9d")  # fmt: skip  # noqa: E501
    trail.decide(3, amount(100.0))
    trail.append(*make_batch(0), make_unrecorded())
    assert first.decision.outcome is not second.decision.outcome
    assert sidestep("decisions", "replay", "--from", trail.path) == "3 decisions replayed, 3 identical\n"
    told = sidestep.json("decision", "replay", "--from", trail.path)
    assert told == {"replayed": 3, "identical": 3, "different": 0, "undetermined": {}, "differences": []}


def test_folder_and_export_are_counted_once(sidestep: Sidestep, trail: Trail, tmp_path: Path) -> None:
    put(sidestep, PAYMENTS)
    for value in range(5):
        trail.decide(1, amount(float(value)))
    exported = trail.export(tmp_path / "spans.json")
    packed = tmp_path / "spans.json.gz"
    packed.write_bytes(gzip.compress(Path(exported).read_bytes()))
    five = "5 decisions replayed, 5 identical\n"
    assert sidestep("decisions", "replay", "--from", exported) == five
    assert sidestep("decisions", "replay", "--from", "-", stdin=Path(exported).read_text()) == five
    assert sidestep("decisions", "replay", "--from", trail.path, "--from", exported, str(packed)) == five


def test_a_difference_is_told_and_exits_with_12(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, PAYMENTS)
    record = trail.decide(1, amount(100.0))
    trail.append(replace(record, decision=replace(record.decision, achieved_acr="phr")))
    shown = sidestep("decisions", "replay", "--from", trail.path, code=12, out=True)
    assert str(UUID(bytes=record.decision_id)) in shown.splitlines()[0]
    assert shown.splitlines()[1:] == [
        '  achieved_acr: recorded "phr", replayed "nist-aal2"',
        "2 decisions replayed, 1 identical, 1 different",
    ]
    told = json.loads(sidestep("-o", "json", "decisions", "replay", "--from", trail.path, code=12, out=True))
    assert (told["identical"], told["different"]) == (1, 1)
    assert told["differences"] == [
        {
            "decision": str(UUID(bytes=record.decision_id)),
            "time": "2027-01-15T08:00:00Z",
            "sidecar": "pod-1",
            "tenant": "acme",
            "action": "payments.transfer",
            "revision": "1:1",
            "fields": [{"field": "achieved_acr", "recorded": '"phr"', "replayed": '"nist-aal2"'}],
        }
    ]


def test_what_cannot_be_decided_again_is_counted_by_cause(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, PAYMENTS)
    record = trail.decide(1, amount(100.0))
    for data in (Data(1, 9), Data(2, 1), Data()):
        trail.append(replace(record, facts=replace(record.facts, data=data)))
    hidden = {"context.amount.currency": "EUR"}
    trail.append(
        replace(record, facts=replace(record.facts, values=hidden), withheld=("context.amount.value",)),
        replace(record, v=VERSION + 1),
    )
    assert sidestep("decisions", "replay", "--from", trail.path).splitlines() == [
        "1 decision replayed, 1 identical",
        "5 could not be decided again:",
        "         1  they were recorded by a newer version",
        "         3  the rules of their revision are not known",
        "         1  a condition reads a value that the sidecar's settings kept out of the record",
    ]
    assert sidestep.stderr.splitlines() == [
        f"note: tenants/acme: no rules of revision {at} are known" for at in ("1:9", "2:1", "0:0")
    ]
    told = sidestep.json("decisions", "replay", "--from", trail.path)
    assert told["undetermined"] == {"newer_record": 1, "rules_unknown": 3, "value_withheld": 1}


def test_decisions_older_than_the_history_say_since_when_it_is_there(
    sidestep: Sidestep, trail: Trail, tmp_path: Path
) -> None:
    put(sidestep, PAYMENTS)
    record = trail.decide(1, amount(100.0))
    put(sidestep, LOWER)
    trail.append(replace(record, facts=replace(record.facts, data=Data(1, 0))))
    with sqlite3.connect(tmp_path / "admin.db") as database:
        database.execute("INSERT INTO rule_history_starts VALUES ('acme', 2)")
    database.close()
    assert "2 could not be decided again" in sidestep("decisions", "replay", "--from", trail.path)
    assert sidestep.stderr == "note: tenants/acme: the rules were not recorded before revision 2\n"


def test_saved_rules_need_no_control_plane(sidestep: Sidestep, trail: Trail, tmp_path: Path) -> None:
    put(sidestep, PAYMENTS)
    sidestep("settings", "put", sidestep.file("settings.yaml", SETTINGS))
    trail.decide(2, amount(100.0))
    put(sidestep, LOWER)
    trail.decide(3, amount(100.0))
    rules = str(tmp_path / "rules.json")
    two = "2 decisions replayed, 2 identical\n"
    assert sidestep("decisions", "replay", "--from", trail.path, "--save-rules", rules) == two
    nowhere = ("-s", "127.0.0.1:1", "decisions", "replay", "--from", trail.path)
    assert "unavailable" in sidestep(*nowhere, code=3)
    assert sidestep(*nowhere, "--rules", rules) == two
    # What was still in force when it was saved may have changed since.
    put(sidestep, PAYMENTS)
    trail.decide(4, amount(100.0))
    assert sidestep(*nowhere, "--rules", rules).splitlines()[:2] == [two.strip(), "1 could not be decided again:"]
    assert sidestep("decisions", "replay", "--from", trail.path) == "3 decisions replayed, 3 identical\n"
    assert "--rules and --save-rules" in sidestep(*nowhere, "--rules", rules, "--save-rules", rules, code=2)


SETTINGS = """apiVersion: sidestep.dev/v1
kind: Settings
metadata: {tenant: acme}
spec: {acrEdges: [{higher: phr, lower: nist-aal2}], riskCeiling: 90}
"""


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"apiVersion": "sidestep.dev/v1", "kind": "RuleHistory", "rules": [1]}']
)
def test_a_file_of_rules_that_is_none_is_refused(sidestep: Sidestep, trail: Trail, text: str) -> None:
    rules = sidestep.file("rules.json", text)
    assert sidestep("decisions", "replay", "--from", trail.path, "--rules", rules, code=2).startswith(
        f"error: {rules}: is not a file made by --save-rules"
    )


def test_only_some_decisions(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, PAYMENTS)
    sidestep("-t", "globex", "policy", "put", sidestep.file("globex.yaml", PAYMENTS.replace("acme", "globex")))
    for hours in range(4):
        trail.decide(1, replace(amount(100.0), now=NOW + 3600 * hours))
    trail.decide(1, replace(amount(100.0), tenant="globex"))
    replay = ("decisions", "replay", "--from", trail.path)
    assert "4 decisions replayed" in sidestep(*replay)
    assert "1 decision replayed" in sidestep(*replay, "-t", "globex")
    assert "2 decisions replayed" in sidestep(
        *replay, "--since", "2027-01-15T09:00:00", "--until", "2027-01-15T11:00:00"
    )
    assert sidestep(*replay, "--until", "2027-01-15T08:00:00", code=4) == "error: no decision was found\n"


def test_times_may_be_told_from_now(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, PAYMENTS)
    trail.decide(1, replace(amount(100.0), now=time.time() - 1800))
    replay = ("decisions", "replay", "--from", trail.path)
    assert "1 decision replayed, 1 identical" in sidestep(*replay, "--since", "-1h", "--until", "now")
    sidestep(*replay, "--until", "-1h", code=4)
    assert "'+30d' or '-7d'" in sidestep(*replay, "--since", "yesterday", code=2)
    assert "--since" in sidestep(*replay, "--since", "-1x", code=2)


def test_no_decision_is_a_failure(sidestep: Sidestep, trail: Trail, tmp_path: Path) -> None:
    put(sidestep, PAYMENTS)
    trail.append(make_unrecorded())
    assert sidestep("decisions", "replay", "--from", trail.path, code=4) == "error: no decision was found\n"
    nothing = str(tmp_path / "nothing")
    assert nothing in sidestep("decisions", "replay", "--from", nothing, code=2)
    (tmp_path / "empty").mkdir()
    assert "no journal" in sidestep("decisions", "replay", "--from", str(tmp_path / "empty"), code=2)


def test_damage_is_told_and_the_rest_replayed(sidestep: Sidestep, trail: Trail, tmp_path: Path) -> None:
    put(sidestep, PAYMENTS)
    for value in range(3):
        trail.decide(1, amount(float(value)))
    segment = trail.folder / str(list_segments(trail.folder)[0])
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    assert sidestep("decisions", "replay", "--from", trail.path) == "2 decisions replayed, 2 identical\n"
    assert sidestep.stderr.startswith(f"warning: {segment}: 1 damaged records before number 2")


# With a candidate


def test_a_candidate_that_tightens_shows_whom_it_challenges(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, PAYMENTS)
    challenged = [trail.decide(1, amount(float(value))) for value in (60, 70, 80, 90, 100)]
    for value in (10, 20, 6000):
        trail.decide(1, amount(float(value)))
    trail.decide(1, replace(amount(100.0), action="elsewhere.act"))
    candidate = sidestep.file("candidate.yaml", LOWER)
    shown = sidestep("decisions", "replay", "--from", trail.path, "--policy", candidate, "--examples", "2")
    assert shown.splitlines()[:6] == [
        "9 decisions replayed, 9 identical",
        "",
        "payments on 9 decisions",
        "         0  newly allowed",
        "         5  newly challenged (were 5 ALLOW)",
        "         0  newly denied",
    ]
    assert "         4  unchanged" in shown
    assert ["ALLOW", "STEP_UP", "payments/high-value", "5"] in [line.split() for line in shown.splitlines()]
    assert shown.count("would: TRIGGER_FIRED payments/high-value; ACR_UNMET payments/high-value") == 2
    told = sidestep.json("decisions", "replay", "--from", trail.path, "--policy", candidate)["candidate"]
    assert {key: told[key] for key in ("compared", "unchanged", "newlyAllowed", "newlyChallenged", "newlyDenied")} == {
        "compared": 9,
        "unchanged": 4,
        "newlyAllowed": 0,
        "newlyChallenged": 5,
        "newlyDenied": 0,
    }
    (clause,) = told["clauses"]
    assert (clause["was"], clause["would"], clause["clause"], clause["decisions"]) == (
        "ALLOW",
        "STEP_UP",
        "payments/high-value",
        5,
    )
    assert [example["decision"] for example in clause["examples"]] == [
        str(UUID(bytes=record.decision_id)) for record in challenged[:3]
    ]
    assert clause["examples"][0]["was"] == ["REQUIREMENT_MET"]
    assert told["outcomes"][0] == {"was": "ALLOW", "would": "STEP_UP", "decisions": 5}


def test_a_candidate_that_loosens_shows_whom_it_allows(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, LOWER)
    for value in (60, 70, 10):
        trail.decide(1, amount(float(value)))
    observed = PAYMENTS.replace("name: payments,", "name: next,").replace(
        "spec:\n", "spec:\n  mode: observe\n  replaces: payments\n"
    )
    candidate = sidestep.file("candidate.yaml", observed)
    told = sidestep.json("decisions", "replay", "--from", trail.path, "--policy", candidate)["candidate"]
    assert (told["policy"], told["newlyAllowed"], told["unchanged"]) == ("next", 2, 1)
    assert [(c["was"], c["clause"], c["decisions"]) for c in told["clauses"]] == [("STEP_UP", "payments/high-value", 2)]


def test_what_the_candidate_reads_and_nobody_did_is_not_guessed(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, PAYMENTS)
    trail.decide(1, amount(10.0))
    reads = PAYMENTS.replace("  triggers:\n", "  context: {vip: bool}\n  triggers:\n").replace(
        "!device.known", "!context.vip"
    )
    candidate = sidestep.file("candidate.yaml", reads)
    told = sidestep.json("decisions", "replay", "--from", trail.path, "--policy", candidate)
    assert (told["identical"], told["undetermined"]) == (1, {})
    assert (told["candidate"]["compared"], told["candidate"]["undetermined"]) == (0, {"value_not_recorded": 1})
    shown = sidestep("decisions", "replay", "--from", trail.path, "--policy", candidate)
    assert "1 cannot be told:\n         1  the candidate reads a value that no policy read then" in shown


def test_a_decision_that_differs_anyway_is_not_held_against_the_candidate(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, PAYMENTS)
    record = trail.decide(1, amount(10.0))
    trail.append(replace(record, decision=replace(record.decision, achieved_acr="phr")))
    candidate = sidestep.file("candidate.yaml", LOWER)
    out = sidestep("-o", "json", "decisions", "replay", "--from", trail.path, "--policy", candidate, code=12, out=True)
    told = json.loads(out)["candidate"]
    assert (told["compared"], told["undetermined"]) == (1, {"replays_differently": 1})


def test_a_candidate_with_a_fault_is_refused_with_its_place(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, PAYMENTS)
    trail.decide(1, amount(10.0))
    path = sidestep.file("bad.yaml", PAYMENTS.replace("!device.known", "!device.knwn").lstrip())
    shown = sidestep("decisions", "replay", "--from", trail.path, "--policy", path, code=2).splitlines()
    assert shown[0].startswith(f"error: {path}:")
    assert "device.knwn" in shown[0]
    assert "device.knwn" in shown[1]
    assert shown[2].strip() == "^"
    other = sidestep.file("other.yaml", PAYMENTS.replace("acme", "globex"))
    shown = sidestep("decisions", "replay", "--from", trail.path, "--policy", other, code=2)
    assert "'globex' is not the tenant asked for, 'acme'" in shown


# Finding them


def test_decisions_are_found_by_user_hash_and_id(sidestep: Sidestep, trail: Trail, tmp_path: Path) -> None:
    put(sidestep, PAYMENTS)
    sidestep("key", "add", "t1", "--kind", "tenant")
    (hashed,) = sidestep.json("subject", "hash", "alice")
    assert hashed["key"] == "t1"
    assert hashed["hash"] in sidestep("subject", "hash", "alice")
    hers = trail.decide(1, amount(6000.0), user_hash=hashed["hash"])
    trail.decide(1, amount(10.0), user_hash="someone else's")
    raw = trail.decide(1, amount(20.0), user_hash="", user_id="alice")
    exported = trail.export(tmp_path / "spans.json")
    for source in (trail.path, exported):
        found = sidestep.json("decisions", "find", "--from", source, "--user", "alice")
        assert [item["decision"] for item in found] == [str(UUID(bytes=r.decision_id)) for r in (hers, raw)]
        assert found[0]["reasons"] == [str(reason) for reason in hers.decision.reasons]
        assert (found[0]["outcome"], found[0]["userHash"]) == ("STEP_UP", hashed["hash"])
        assert found[0]["challenge"]["methods"] == ["webauthn", "totp"]
        by_hash = sidestep.json("decisions", "find", "--from", source, "--hash", hashed["hash"])
        assert by_hash == found[:1]
    wanted = str(UUID(bytes=hers.decision_id))
    shown = sidestep("decisions", "find", "--from", trail.path, "--id", wanted)
    assert wanted in shown
    assert "STEP_UP CHALLENGE" in shown
    assert "ACR_UNMET payments/high-value" in shown
    assert shown.count("reasons:") == 1


def test_finding_nothing_is_a_failure(sidestep: Sidestep, trail: Trail) -> None:
    put(sidestep, PAYMENTS)
    trail.decide(1, amount(10.0))
    find = ("decisions", "find", "--from", trail.path)
    assert sidestep(*find, "--hash", "00", code=4) == "error: no decision was found\n"
    assert sidestep(*find, "--user", "nobody", code=4) == "error: no decision was found\n"
    assert "give exactly one of --user, --hash or --id" in sidestep(*find, code=2)
    assert "'xyz' is not a decision id" in sidestep(*find, "--id", "xyz", code=2)
    assert "has no TENANT key" in sidestep("subject", "hash", "alice", code=4)
