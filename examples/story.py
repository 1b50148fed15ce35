"""The demo's story, scene by scene: what each user does, and what must come of it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sidestep.client import Client, Decision, Dpop, Outcome, Question, Revision

from examples.identity import PAYMENT_URI, DeviceKey, edited
from examples.stack import Stack, program
from examples.world import LAPTOP, PHONE, TABLET, TENANT, Admin, World

HERE = Path(__file__).resolve().parent
REAL_FEED = HERE.parent.parent / "shared" / "data" / "ipsum" / "ipsum.txt"
SAMPLE_FEED = HERE / "feeds" / "ipsum-sample.txt"
CLEAN_ADDRESS = "192.0.2.10"
EVENT_TIMEOUT_S = 30.0
POLL_S = 0.01
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


class Story:
    """Asks, prints and counts. `unexpected` holds a line for every answer that was not what it should be."""

    def __init__(self, stack: Stack, world: World, admin: Admin) -> None:
        self.stack = stack
        self.world = world
        self.admin = admin
        self.client = self._connect()
        self.decisions: list[Decision] = []
        self.unexpected: list[str] = []
        self._scene = 0
        self._feed = REAL_FEED if REAL_FEED.exists() else SAMPLE_FEED
        self._flagged = first_address(self._feed)
        self._alice = world.idp.token("alice", "nist-aal2", age_s=600)
        # Dora logged in with a password alone: nist-aal1 is not enough for payments, so only a grant can let her pass.
        self._dora = world.idp.token("dora", "nist-aal1", age_s=600, session="dora-1", jkt=world.dora_key.jkt)

    def play(self) -> None:
        """All scenes, in order."""
        self._ordinary()
        self._unusual()
        self._exemptions()
        self._tampering()
        self._callers()
        self._security_team()
        self._observed()
        self._fresh_data()
        self._outage()

    # --- scenes ---------------------------------------------------------------------------------------------------

    def _ordinary(self) -> None:
        self._title("Alice pays from her own laptop, ten minutes after logging in with a second factor")
        self._ask(self._alices(), Outcome.ALLOW, "REQUIREMENT_MET")

    def _unusual(self) -> None:
        self._title("... from a phone nobody has seen before")
        self._ask(self._alices(fingerprint=PHONE, device_id="", dpop=None), Outcome.STEP_UP, "unknown-device")
        self._title("... from Bob's tablet: known, but not for Alice")
        self._ask(
            self._alices(fingerprint=TABLET, device_id="bob-tablet", dpop=None), Outcome.STEP_UP, "unknown-device"
        )
        self._title(f"... through {self._flagged}, an address the threat feed names")
        self._ask(self._alices(ip=self._flagged), Outcome.STEP_UP, "flagged-network")
        self._title("... 9,500 EUR at once")
        self._ask(self._alices(amount=("EUR", "9500")), Outcome.STEP_UP, "high-value")
        self._title("... and again after touching her passkey")
        fresh = self.world.idp.token("alice", "phr", jkt=self.world.alice_key.jkt)
        self._ask(self._alices(token=fresh, amount=("EUR", "9500")), Outcome.ALLOW, "REQUIREMENT_MET")

    def _exemptions(self) -> None:
        self._title("Dora, of treasury, logged in with a password only")
        self._ask(self._doras(), Outcome.STEP_UP, "NO_GRANT")
        for grant, scope in (
            ("dora-travels", {"subject": "dora"}),
            ("treasury-desk", {"role": "treasury"}),
            ("vault-laptop", {"device": "dora-laptop"}),
        ):
            self._title(f"... with an exemption grant for {next(iter(scope))} {next(iter(scope.values()))}")
            self.world.grant(grant, **scope)
            self.admin.wait_until_everywhere()
            decision = self._ask(self._doras(), Outcome.ALLOW, f"GRANT_APPLIED {grant}")
            self._say(
                f"achieved {decision.achieved_acr}, waived {', '.join(decision.waived_acrs)}: the grant raises nothing"
            )
            if grant != "vault-laptop":
                self.world.grant(grant, state="REVOKED", **scope)
                self.admin.wait_until_everywhere()
        self._title("... to a new account: a requirement beyond the grant's ceiling")
        self._ask(self._doras(action="payments.payout"), Outcome.STEP_UP, "CEILING_EXCEEDED payouts/base")
        self._title("... the grant is revoked: how long until it is enforced?")
        started = time.monotonic()
        self.world.grant("vault-laptop", state="REVOKED", device="dora-laptop")
        committed = time.monotonic()
        self._ask_until(self._doras(), Outcome.ALLOW, "GRANT_APPLIED", Outcome.STEP_UP, "GRANT_INACTIVE vault-laptop")
        enforced = time.monotonic()
        self._say(
            f"enforced {1000 * (enforced - committed):.0f} ms after the commit "
            f"(which took {1000 * (committed - started):.0f} ms)"
        )

    def _tampering(self) -> None:
        self._title("Somebody edits Alice's token to claim a passkey login")
        forged = edited(self._alice, acr="phr")
        self._ask(self._alices(token=forged), Outcome.DENY, "TOKEN_INVALID signature")
        self._title("Somebody uses Bob's token for Alice")
        stolen = self.world.idp.token("bob", "phr")
        self._ask(self._alices(token=stolen, dpop=None), Outcome.DENY, "TOKEN_MISMATCH")

    def _callers(self) -> None:
        self._title("Another program in the pod asks about Alice: it has no token")
        with Client(self.stack.sidecar_address, timeout_s=2.0) as stranger:
            self._refused(stranger, self._alices(), "UNAUTHENTICATED")
        self._title("... it makes one up")
        with Client(self.stack.sidecar_address, timeout_s=2.0, token="a-guess-0123456789") as stranger:
            self._refused(stranger, self._alices(), "UNAUTHENTICATED")
        self._title("The payments service asks about an action that is none of its business")
        self._refused(self.client, self._alices(action="accounts.close"), "PERMISSION_DENIED")

    def _security_team(self) -> None:
        self._title("The security team quarantines Alice's laptop")
        self.world.device_state("alice-laptop", "alice", "QUARANTINED")
        self.admin.wait_until_everywhere()
        self._ask(self._alices(), Outcome.DENY, "DEVICE_QUARANTINED")
        self._title("... and clears it")
        self.world.device_state("alice-laptop", "alice", "ACTIVE")
        self.admin.wait_until_everywhere()
        self._ask(self._alices(), Outcome.ALLOW, "REQUIREMENT_MET")
        self._title("An attack is under way: posture CRITICAL")
        self.world.posture("CRITICAL")
        self.admin.wait_until_everywhere()
        self._ask(self._alices(), Outcome.STEP_UP, "POSTURE_REQUIRES")
        self._title("... over: posture LOW")
        self.world.posture("LOW")
        self.admin.wait_until_everywhere()
        self._ask(self._alices(), Outcome.ALLOW, "REQUIREMENT_MET")
        self._title("Dora's grant once more, then the kill switch: no exemption anywhere")
        self.world.grant("dora-returns", subject="dora")
        self.admin.wait_until_everywhere()
        self._ask(self._doras(), Outcome.ALLOW, "GRANT_APPLIED")
        self.world.posture("LOW", exemptions_off=True)
        self.admin.wait_until_everywhere()
        self._ask(self._doras(), Outcome.STEP_UP, "EXEMPTIONS_OFF")
        self._title("... and off again")
        self.world.posture("LOW")
        self.admin.wait_until_everywhere()
        self._ask(self._doras(), Outcome.ALLOW, "GRANT_APPLIED")

    def _observed(self) -> None:
        self._title("A stricter policy in observe mode disagrees, and changes nothing")
        self._cli("policy", "put", str(HERE / "acme" / "payments-strict.yaml"))
        self.admin.wait_until_everywhere()
        decision = self._ask(self._alices(), Outcome.ALLOW, "REQUIREMENT_MET")
        shadows = decision.explanation.shadows if decision.explanation else []
        told = [f"{shadow.policy} would say {_OUTCOMES.get(shadow.outcome, '?')}" for shadow in shadows]
        self._say("; ".join(told))
        self._expect("payments-strict@1 would say STEP_UP" in told, "the observed policy did not disagree")

    def _fresh_data(self) -> None:
        self._title("A caller asks for data newer than there is")
        revision = self.decisions[-1].revision
        ahead = Revision(revision.epoch, revision.revision + 100) if revision else Revision(1, 100)
        self._ask(self._alices(min_revision=ahead), Outcome.STEP_UP, "BEHIND_MIN_REVISION")
        self._title("... with a passkey just touched, even that does not lock her out")
        fresh = self.world.idp.token("alice", "phr", jkt=self.world.alice_key.jkt)
        self._ask(self._alices(token=fresh, min_revision=ahead), Outcome.ALLOW, "REQUIREMENT_MET")

    def _outage(self) -> None:
        self._title("The control plane stops: answers go on")
        self.stack.stop_control_plane()
        self._ask(self._alices(), Outcome.ALLOW, "REQUIREMENT_MET")
        self._title("... the data goes soft-stale: exemptions stop")
        self._ask_until(self._doras(), Outcome.ALLOW, "GRANT_APPLIED", Outcome.STEP_UP, "DATA_SOFT_STALE")
        self._title("... a fresh strong login still passes")
        fresh = self.world.idp.token("dora", "phr", jkt=self.world.dora_key.jkt)
        self._ask(self._doras(token=fresh), Outcome.ALLOW, "REQUIREMENT_MET")
        self._title("... the sidecar restarts without a control plane: it answers from disk")
        self.stack.stop_sidecar()
        self.stack.start_sidecar()
        self.client.close()
        self.client = self._connect()
        self._ask(self._alices(), Outcome.ALLOW, "REQUIREMENT_MET")
        self._title("... the control plane is back: exemptions too")
        self.stack.start_control_plane()
        self._ask_until(self._doras(), Outcome.STEP_UP, "DATA_SOFT_STALE", Outcome.ALLOW, "GRANT_APPLIED")

    # --- asking ---------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Policies and the threat feed, through the command line as an operator would."""
        for policy in ("payments", "payouts"):
            self._cli("policy", "put", str(HERE / "acme" / f"{policy}.yaml"))
        self._cli("signal", "import", str(self._feed), "--source", "ipsum", "--ttl", "7d")
        self.admin.wait_until_everywhere()

    def _alices(self, **changes: Any) -> Question:
        fields: dict[str, Any] = {
            "subject": "alice",
            "action": "payments.transfer",
            "amount": ("EUR", "120.50"),
            "ip": CLEAN_ADDRESS,
            "token": self._alice,
            "device_id": "alice-laptop",
            "fingerprint": LAPTOP | {"browser_version": "141"},
            "explain": True,
        }
        return self._question(fields | changes, self.world.alice_key, "dpop" not in changes)

    def _doras(self, **changes: Any) -> Question:
        fields: dict[str, Any] = {
            "subject": "dora",
            "action": "payments.transfer",
            "amount": ("EUR", "80"),
            "ip": CLEAN_ADDRESS,
            "token": self._dora,
            "session_last_active_at": time.time() - 5,
            "device_id": "dora-laptop",
            "fingerprint": LAPTOP | {"canvas": "c-d0"},
            "explain": True,
        }
        return self._question(fields | changes, self.world.dora_key, True)

    def _question(self, fields: dict[str, Any], key: DeviceKey, with_proof: bool) -> Question:
        if with_proof:
            fields["dpop"] = Dpop(key.proof(fields["token"], "POST", PAYMENT_URI), "POST", PAYMENT_URI)
        return Question(**fields)

    def _ask(self, question: Question, outcome: Outcome, reason: str) -> Decision:
        decision = self._evaluate(question)
        self._print(question, decision)
        self._expect(_fits(decision, outcome, reason), f"expected {outcome.value} because of {reason}")
        return decision

    def _ask_until(self, question: Question, before: Outcome, why: str, after: Outcome, because: str) -> None:
        """Asks until the answer turns from one into the other; any third one is unexpected."""
        deadline = time.monotonic() + EVENT_TIMEOUT_S
        while True:
            decision = self._evaluate(question)
            if _fits(decision, after, because) or time.monotonic() > deadline:
                break
            self._expect(_fits(decision, before, why), f"expected {before.value} because of {why}")
            time.sleep(POLL_S)
        self._print(question, decision)
        self._expect(_fits(decision, after, because), f"expected {after.value} because of {because}")

    def _evaluate(self, question: Question) -> Decision:
        decision = self.client.evaluate(question, traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01")
        self.decisions.append(decision)
        return decision

    def _refused(self, client: Client, question: Question, code: str) -> None:
        """Asks what is not to be decided: no decision, no trace, and the client falls back on STEP_UP."""
        decision = client.evaluate(question)
        self._print(question, decision)
        refused = decision.fail_mode_used and decision.outcome is Outcome.STEP_UP and not decision.decision_id
        self._expect(refused and (decision.error or "").startswith(code), f"expected {code}")

    def _connect(self) -> Client:
        """As the payments service."""
        return Client(self.stack.sidecar_address, timeout_s=2.0, token_file=self.stack.token_file)

    # --- telling --------------------------------------------------------------------------------------------------

    def _title(self, text: str) -> None:
        self._scene += 1
        print(f"\n{self._scene:2}. {text}", flush=True)

    def _say(self, text: str) -> None:
        print(f"      {text}", flush=True)

    def _print(self, question: Question, decision: Decision) -> None:
        amount = " ".join(map(str, reversed(question.amount))) if isinstance(question.amount, tuple) else ""
        print(
            f"      {question.subject} {question.action} {amount} -> {decision.outcome.value} ({decision.basis.value})"
        )
        for reason in _reasons(decision):
            print(f"        because {reason}")
        if decision.www_authenticate:
            asked = ", ".join(method.id for method in decision.methods)
            print(f"        answer with {asked + ': ' if asked else ''}WWW-Authenticate: {decision.www_authenticate}")
        sys.stdout.flush()

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            line = f"scene {self._scene}: {otherwise}"
            self.unexpected.append(line)
            print(f"      UNEXPECTED: {otherwise}", flush=True)

    def _cli(self, *arguments: str) -> None:
        command = [
            program("sidestep"),
            "--server",
            self.stack.admin_address,
            "--tenant",
            TENANT,
        ]
        print(f"      $ sidestep {' '.join(_short(argument) for argument in arguments)}", flush=True)
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=False)
        for line in (done.stdout + done.stderr).strip().splitlines()[-4:]:
            print(f"        {line}", flush=True)
        if done.returncode != 0:
            raise RuntimeError(f"sidestep {arguments[0]} failed with exit code {done.returncode}")


_OUTCOMES = {1: "ALLOW", 2: "STEP_UP", 3: "DENY"}


def _short(argument: str) -> str:
    return Path(argument).name if "/" in argument else argument


def _reasons(decision: Decision) -> list[str]:
    if decision.explanation is not None:
        return list(decision.explanation.reasons)
    return [decision.error or decision.reason.value]


def _fits(decision: Decision, outcome: Outcome, reason: str) -> bool:
    return decision.outcome is outcome and any(reason in line for line in _reasons(decision))


def first_address(feed: Path) -> str:
    """The first address of an IPsum feed: the one most lists name."""
    for line in feed.read_text().splitlines():
        match = re.match(r"(\d+\.\d+\.\d+\.\d+)\t", line)
        if match:
            return match[1]
    raise ValueError(f"{feed}: no address")
