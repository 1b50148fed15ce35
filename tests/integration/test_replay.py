"""A real stack decides under rules that keep changing. Its journal and its spans both replay, every decision identical."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sidestep.client import Basis, Client, Decision, Dpop, Outcome, Question
from sidestep.v1 import resources_pb2 as pb

from controlplane.cli.main import cli
from examples.identity import AUDIENCE, ISSUER, PAYMENT_URI
from examples.world import LAPTOP, PHONE, Admin, World
from tests.fakes.otlp import OtlpReceiver, always
from tests.fakes.otlp_json import write_lines
from tests.processes import PATIENCE_S, controlplane, sidecar, until

ACME = Path(__file__).resolve().parents[2] / "examples" / "acme"
PAYMENTS = (ACME / "payments.yaml").read_text(encoding="utf-8")
STRICT = (ACME / "payments-strict.yaml").read_text(encoding="utf-8")
LOWER = PAYMENTS.replace("5000.0", "1000.0")


class Shop:
    """Customers who pay, and administrators who change the rules under them."""

    def __init__(self, admin_address: str, sidecar_address: str) -> None:
        self.admin_address = admin_address
        self.admin = Admin(admin_address)
        self.world = World(self.admin)
        self._client = Client(sidecar_address, timeout_s=PATIENCE_S)
        self.answers: list[Decision] = []

    def open(self) -> None:
        self.world.build()
        self.log_in()
        self.put_policy(PAYMENTS, "payments")
        self.put_policy((ACME / "payouts.yaml").read_text(encoding="utf-8"), "payouts")
        self.world.grant("dora-travels", subject="dora")

    def log_in(self) -> None:
        idp = self.world.idp
        self._alice = idp.token("alice", "nist-aal2", age_s=600)
        self._bound = idp.token("alice", "nist-aal2", age_s=600, jkt=self.world.alice_key.jkt)
        self._dora = idp.token("dora", "nist-aal1", age_s=600, session="dora-1", jkt=self.world.dora_key.jkt)

    def close(self) -> None:
        self.admin.close()
        self._client.close()

    def put_policy(self, source: str, name: str) -> None:
        self.admin.put(policy=pb.Policy(name=f"tenants/acme/policies/{name}", source=source))

    def round(self, count: int) -> None:
        """So many questions, of all kinds, under the rules as they now are."""
        self.admin.wait_until_everywhere()
        kinds = (self._alices, self.doras, self._strangers, self._thiefs, self._payouts, self._nobodys)
        asked = itertools.cycle(itertools.product(("20", "900", "1500", "9500"), kinds))
        for amount, kind in itertools.islice(asked, count):
            self.ask(kind(amount))

    def ask(self, question: Question) -> Decision:
        answer = self._client.evaluate(question)
        assert answer.error is None
        self.answers.append(answer)
        return answer

    def _alices(self, amount: str, **changes: Any) -> Question:
        fields: dict[str, Any] = {
            "subject": "alice",
            "action": "payments.transfer",
            "amount": ("EUR", amount),
            "ip": "192.0.2.10",
            "token": self._alice,
            "device_id": "alice-laptop",
            "fingerprint": LAPTOP,
        }
        return Question(**(fields | changes))

    def alice_pays(self, amount: str) -> Decision:
        """From her laptop, with its key: known, whatever else."""
        proof = Dpop(self.world.alice_key.proof(self._bound, "POST", PAYMENT_URI), "POST", PAYMENT_URI)
        return self.ask(self._alices(amount, token=self._bound, dpop=proof))

    def doras(self, amount: str) -> Question:
        return Question(
            subject="dora",
            action="payments.transfer",
            amount=("EUR", amount),
            ip="192.0.2.10",
            token=self._dora,
            session_last_active_at=time.time() - 5,
            device_id="dora-laptop",
            fingerprint=LAPTOP | {"canvas": "c-d0"},
            dpop=Dpop(self.world.dora_key.proof(self._dora, "POST", PAYMENT_URI), "POST", PAYMENT_URI),
        )

    def _strangers(self, amount: str) -> Question:
        return self._alices(amount, fingerprint=PHONE, device_id="")

    def _thiefs(self, amount: str) -> Question:
        return self._alices(amount, token=self._dora)

    def _payouts(self, amount: str) -> Question:
        return self._alices(amount, action="payments.payout")

    def _nobodys(self, amount: str) -> Question:
        return Question(subject="nobody", action="elsewhere.act", amount=("EUR", amount))


class Exports:
    """Keeps requests as they came, as a collector's file does."""

    def __init__(self, receiver: OtlpReceiver) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        receiver.fail_after = self.requests.append

    def count(self) -> int:
        """Of different spans."""
        groups = [group for request in list(self.requests) for group in request.resource_spans]
        return len({span.span_id for group in groups for scope in group.scope_spans for span in scope.spans})


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[tuple[Shop, Path, OtlpReceiver, Exports]]:
    with OtlpReceiver() as receiver:
        # The collector is out of order, so that everything stays in the journal at first.
        receiver.fail = always(grpc.StatusCode.UNAVAILABLE, retry_after_s=0.2)
        exports = Exports(receiver)
        settings = {
            "SIDESTEP_JOURNAL_SINK": "otlp",
            "SIDESTEP_SIDECAR_NAME": "pod-1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{receiver.endpoint}",
            "OTEL_METRICS_EXPORTER": "none",
        }
        data = tmp_path / "sidecar"
        with (
            controlplane(tmp_path / "cp") as running,
            sidecar(data, SIDESTEP_CONTROL_PLANE=running.grpc, **settings) as pod,
        ):
            shop = Shop(running.grpc, pod.grpc)
            try:
                yield shop, data, receiver, exports
            finally:
                shop.close()
                receiver.fail = None  # what is left is shipped at once


def replayed(shop: Shop, *arguments: str) -> dict[str, Any]:
    """What `sidestep decisions replay` answers."""
    result = CliRunner(env={"SIDESTEP_SERVER": shop.admin_address}).invoke(
        cli, ["-o", "json", "decisions", "replay", *arguments]
    )
    assert result.exit_code == 0, (result.exit_code, result.stdout[:2000], result.stderr)
    assert result.stderr == ""
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def changes(shop: Shop) -> list[Callable[[], Any]]:
    """What administrators do between the rounds."""
    settings = pb.Settings(name="tenants/acme/settings/default", risk_ceiling=50)
    settings.acr_edges.add(higher="phr", lower="nist-aal2")
    settings.issuers.add(issuer=ISSUER, audiences=[AUDIENCE], max_acrs=["phr", "nist-aal2"])
    settings.methods.add(id="passkey", acr="phr", amr=["swk", "user"], rank=90)
    return [
        lambda: shop.put_policy(LOWER, "payments"),
        lambda: shop.put_policy(STRICT, "payments-strict"),
        lambda: shop.admin.put(settings=settings),
        lambda: shop.world.posture("CRITICAL"),
        lambda: shop.world.posture("LOW"),
        lambda: shop.put_policy(PAYMENTS, "payments"),
    ]


def test_every_decision_replays_from_folder_and_export(
    stack: tuple[Shop, Path, OtlpReceiver, Exports], tmp_path: Path
) -> None:
    shop, data, receiver, exports = stack
    shop.open()
    shop.round(40)
    for change in changes(shop):
        change()
        shop.round(40)
    assert {answer.outcome for answer in shop.answers} == {Outcome.ALLOW, Outcome.STEP_UP, Outcome.DENY}
    assert {answer.basis for answer in shop.answers} > {Basis.EXEMPTION_GRANT, Basis.ASSURANCE_SATISFIED}
    asked = len(shop.answers)
    whole = {"replayed": asked, "identical": asked, "different": 0, "undetermined": {}, "differences": []}
    assert replayed(shop, "--from", str(data)) == whole

    # A last round in which what a stricter limit would change is known.
    since = datetime.fromtimestamp(time.time(), UTC).isoformat()
    paid = [shop.alice_pays(str(amount)) for amount in range(200, 6200, 200)]
    assert [answer.outcome for answer in paid] == [Outcome.ALLOW] * 25 + [Outcome.STEP_UP] * 5
    candidate = tmp_path / "candidate.yaml"
    candidate.write_text(LOWER)
    tried = replayed(shop, "--from", str(data), "--policy", str(candidate), "--since", since)
    assert (tried["replayed"], tried["identical"]) == (30, 30)
    found = tried["candidate"]
    assert (found["compared"], found["newlyChallenged"], found["newlyAllowed"], found["unchanged"]) == (30, 20, 0, 10)
    (clause,) = found["clauses"]
    assert (clause["clause"], clause["decisions"]) == ("payments/high-value", 20)
    shown = {example["decision"] for example in clause["examples"]}
    assert shown == {answer.decision_id for answer in paid[5:8]}

    # The collector comes back; what it exports replays all the same, and together with the folder nothing counts twice.
    asked = len(shop.answers)
    receiver.fail = None
    until(lambda: exports.count() >= asked, "all spans")
    exported = tmp_path / "spans.json"
    write_lines(exported, exports.requests)
    whole |= {"replayed": asked, "identical": asked}
    assert replayed(shop, "--from", str(exported)) == whole
    assert replayed(shop, "--from", str(exported), str(data)) == whole
