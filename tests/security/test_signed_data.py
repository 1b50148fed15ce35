"""A man in the middle between a real sidecar and a real control plane: he can delay, never forge, roll back or freeze unnoticed.

After each of his doings: it was refused and counted, no answer was a wrong ALLOW, and honest again the data is equal.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from sidestep.v1 import admin_pb2, decision_pb2, decision_pb2_grpc, resources_pb2, sync_pb2

from controlplane.signing import new_key, public_pem
from engine.names import Lane
from sidecar.clock import Clock
from sidecar.page import UNVERIFIED
from sidecar.store.errors import NotLoadedError
from sidecar.store.reader import Reader
from tests.chaos import world
from tests.chaos.pod import Plane, Pod
from tests.fakes.mitm import ManInTheMiddle, Tamper
from tests.fakes.stock import TENANT, exempted
from tests.processes import until

URGENT, BULK = resources_pb2.LANE_URGENT, resources_pb2.LANE_BULK
ALLOW, STEP_UP = decision_pb2.OUTCOME_ALLOW, decision_pb2.OUTCOME_STEP_UP
WITHIN_S = 40.0


class Rig:
    """The three, and Alice, who may skip the challenge while her grant is active."""

    def __init__(self, plane: Plane, between: ManInTheMiddle, pod: Pod) -> None:
        self.plane = plane
        self.between = between
        self.pod = pod
        self.active = False
        self._grants = 0
        self._channel = grpc.insecure_channel(pod.address)
        self._stub = decision_pb2_grpc.DecisionServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._reader = Reader(pod.data_dir)

    def close(self) -> None:
        self._channel.close()
        self._reader.close()

    def ask(self) -> int:
        """The outcome; 0: nothing is loaded."""
        try:
            return int(self._stub.Evaluate(exempted(), timeout=5.0, wait_for_ready=True).outcome)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return 0

    def grant(self, *, active: bool) -> None:
        """Grants Alice anew, or revokes what she has: a revoked grant does not come back."""
        self._grants += active
        self.plane.put(world.grant(self._grants, active=active))
        self.active = active

    def settled(self) -> None:
        """The sidecar holds what the control plane has, and answers by it."""
        wanted = ALLOW if self.active else STEP_UP
        until(lambda: self._equal() and self.ask() == wanted, f"equality; {self.pod.log()}", WITHIN_S)

    def age_s(self) -> float | None:
        self._reader.follow()
        with self._reader.view() as view:
            return view.age_s(TENANT, Clock())

    def listed(self) -> admin_pb2.SidecarStatus:
        """The sidecar as the control plane sees it; empty: not yet."""
        found = self.plane.admin.ListSidecars(admin_pb2.ListSidecarsRequest(), timeout=5.0).sidecars
        return next(iter(found), admin_pb2.SidecarStatus())

    def refused(self, *reasons: str) -> float:
        counts = [f'sidestep_sync_unverified_total{{reason="{reason}"}}' for reason in reasons or UNVERIFIED]
        lines = dict(line.rsplit(" ", 1) for line in self.pod.metrics().splitlines() if not line.startswith("#"))
        return sum(float(lines[name]) for name in counts)

    @contextmanager
    def attack(self, tamper: Tamper, *reasons: str, never: int | None = None, cut: bool = False) -> Iterator[None]:
        """The man at work, until what he does was refused for these reasons; meanwhile no answer is `never`."""
        before = self.refused(*reasons)
        self.between.tamper = tamper
        if cut:
            self.between.cut()
        wrong: list[int] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                outcome = self.ask()
                if outcome == never:
                    wrong.append(outcome)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
            until(lambda: self.refused(*reasons) > before, f"{reasons} to be counted; {self.pod.log()}", WITHIN_S)
        finally:
            done.set()
            watcher.join()
            self.between.tamper = None
        assert not wrong
        assert "not believed, and not applied" in self.pod.log()
        self.settled()

    def _equal(self) -> bool:
        heads = self.plane.heads(TENANT)
        self._reader.follow()
        try:
            with self._reader.view() as view:
                held = {(tenant, lane): view.cursor(tenant, Lane(lane)) for tenant, lane in heads}
        except NotLoadedError:
            return False
        return all(held[key] == head for key, head in heads.items())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    private = new_key()
    (directory / "signing").mkdir(mode=0o700)
    (directory / "signing" / "2026-11.pem").write_bytes(private)
    (directory / "signing" / "2026-11.pem").chmod(0o600)
    (directory / "trusted.pem").write_bytes(public_pem(private, "test")[1])
    return directory


@pytest.fixture(scope="module")
def rig(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("signed")
    with Plane(directory / "plane", SIDESTEP_CP_SIGNING_KEYS=str(keys / "signing")) as plane:
        for resource in world.resources():
            plane.put(resource)
        plane.load(TENANT, [world.device(number) for number in range(2500)])
        (directory / "pod").mkdir()
        with (
            ManInTheMiddle(plane.address) as between,
            Pod(directory / "pod" / "data", between.address, SIDESTEP_TRUSTED_KEYS=str(keys / "trusted.pem")) as pod,
        ):
            rig = Rig(plane, between, pod)
            rig.grant(active=True)
            rig.settled()
            yield rig
            rig.close()


def only(kind: str, change: Callable[[sync_pb2.SyncResponse], None]) -> Tamper:
    """Changes every message of a kind; of heartbeats those that answer a ping."""

    def tamper(response: sync_pb2.SyncResponse) -> list[sync_pb2.SyncResponse]:
        if response.WhichOneof("message") == kind and (kind != "heartbeat" or response.heartbeat.nonce):
            change(response)
        return [response]

    return tamper


def strip(response: sync_pb2.SyncResponse) -> None:
    response.ClearField("signature")


def test_an_honest_path_is_believed_and_health_says_by_how_many_keys(rig: Rig) -> None:
    rig.settled()
    health = rig.pod.readyz()
    assert (health["trusted_keys"], health["trusted_keys_unusable"]) == (1, False)
    assert health["sync_unverified"] == rig.refused()
    # One machine has one clock; both sides say so.
    until(lambda: abs(rig.pod.readyz()["clock_offset_s"] or 99.0) < 10, "the clock to be compared")
    assert abs(rig.pod.metric("sidestep_clock_offset_seconds")) < 10
    until(lambda: rig.listed().HasField("clock_offset_ms"), "the control plane to be told")
    assert abs(rig.listed().clock_offset_ms) < 10_000


def forged_grant(response: sync_pb2.SyncResponse) -> None:
    """The grant of another name."""
    delta = sync_pb2.Delta.FromString(response.delta)
    for change in delta.changes:
        change.value = change.value.replace(b"chaos-", b"chaOs-")
    response.delta = delta.SerializeToString()


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [(only("delta", forged_grant), "bad_signature"), (only("delta", strip), "unsigned")],
    ids=["changed", "stripped"],
)
def test_a_tampered_delta_is_not_applied(rig: Rig, tamper: Tamper, reason: str) -> None:
    rig.grant(active=False)
    rig.settled()
    # The grant comes back, and no tampered word of it is believed: nothing is allowed by it.
    with rig.attack(tamper, reason, never=ALLOW):
        rig.grant(active=True)


def test_a_tampered_heartbeat_confirms_nothing(rig: Rig) -> None:
    def later(response: sync_pb2.SyncResponse) -> None:
        response.heartbeat.server_time.FromSeconds(2_000_000_000)

    with rig.attack(only("heartbeat", later), "bad_signature"):
        pass


def lose_the_cache(rig: Rig) -> None:
    """A generation that cannot be read is quarantined; only the marks are left of what was there."""
    current = rig.pod.data_dir / (rig.pod.data_dir / "CURRENT").read_text().strip()
    (current / "suspect").write_text("told to", encoding="utf-8")
    # By rename: whoever has the file mapped keeps what it had.
    (current / "torn").write_bytes(bytes(8192))
    (current / "torn").replace(current / "data.mdb")
    rig.pod.kill("agent")
    until(lambda: not current.exists(), "the generation to be put aside")


def flip(response: sync_pb2.SyncResponse) -> None:
    payload = bytearray(response.snapshot_chunk.payload)
    payload[len(payload) // 2] ^= 1
    response.snapshot_chunk.payload = bytes(payload)


def test_a_tampered_snapshot_is_not_adopted(rig: Rig) -> None:
    rig.grant(active=False)
    rig.settled()
    with rig.attack(only("snapshot_chunk", flip), "altered", never=ALLOW):
        lose_the_cache(rig)
    rig.grant(active=True)
    rig.settled()


def test_an_older_snapshot_is_not_taken_even_after_the_cache_was_lost(rig: Rig) -> None:
    lose_the_cache(rig)
    rig.settled()
    older = [
        response
        for response in rig.between.seen
        if response.WhichOneof("message") in ("snapshot_offer", "snapshot_chunk", "snapshot_end")
    ]
    # What was true when the snapshot was made is true no longer.
    rig.grant(active=False)
    rig.settled()

    def replay(response: sync_pb2.SyncResponse) -> list[sync_pb2.SyncResponse]:
        return older if response.WhichOneof("message") == "snapshot_offer" else [response]

    with rig.attack(replay, "rolled_back", never=ALLOW):
        lose_the_cache(rig)
    rig.grant(active=True)
    rig.settled()


def test_a_replayed_heartbeat_confirms_nothing(rig: Rig) -> None:
    old = next(response for response in rig.between.seen if response.heartbeat.nonce)
    with rig.attack(lambda response: [old] if response.heartbeat.nonce else [response], "replayed"):
        pass


def test_a_replayed_scope_takes_no_tenant_away(rig: Rig) -> None:
    old = next(response for response in rig.between.seen if response.HasField("scope"))
    with rig.attack(only("scope", lambda response: response.CopyFrom(old)), "replayed", cut=True):
        pass


def test_freezing_shows_in_the_age_and_ends_exemptions(keys: Path, rig: Rig, tmp_path: Path) -> None:
    with Pod(
        tmp_path / "data",
        rig.between.address,
        SIDESTEP_TRUSTED_KEYS=str(keys / "trusted.pem"),
        SIDESTEP_SOFT_STALE="4s",
        SIDESTEP_HARD_STALE="1h",
    ) as pod:
        frozen = Rig(rig.plane, rig.between, pod)
        frozen.active = rig.active
        frozen.settled()
        streams = rig.between.streams
        # Everything that says what is new is held back; unasked heartbeats keep the stream alive.
        rig.between.tamper = lambda response: (
            [response] if response.WhichOneof("message") == "heartbeat" and not response.heartbeat.nonce else []
        )
        try:
            rig.grant(active=False)
            until(lambda: frozen.ask() == STEP_UP, "exemptions to end", WITHIN_S)
            assert rig.between.streams == streams  # no connection was lost: it was the age
            age_s = frozen.age_s()
            assert age_s is not None
            assert age_s > 4
        finally:
            rig.between.tamper = None
            rig.between.cut()
        rig.settled()
        frozen.active = rig.active
        frozen.settled()
        frozen.close()
    rig.grant(active=True)
    rig.settled()


def test_a_key_that_is_no_longer_pinned_is_no_longer_believed_without_a_restart(keys: Path, rig: Rig) -> None:
    trusted, signing = keys / "trusted.pem", keys / "signing"
    fresh = new_key()
    before = trusted.read_bytes()
    agent = rig.pod.child("agent")
    # Pinned first, and only then used; the old one is taken away last.
    trusted.write_bytes(before + b"# the next one\n" + public_pem(fresh, "test")[1])
    until(lambda: rig.pod.readyz()["trusted_keys"] == 2, "the new key to be pinned")
    (signing / "2026-12.pem").write_bytes(fresh)
    rig.grant(active=False)
    until(
        lambda: rig.between.seen[-1].signature.key_id == public_pem(fresh, "test")[0], "the new key to sign", WITHIN_S
    )
    rig.settled()
    trusted.write_bytes(public_pem(fresh, "test")[1])
    until(lambda: rig.pod.readyz()["trusted_keys"] == 1, "the old key to be forgotten")
    rig.grant(active=True)
    rig.settled()
    refused = rig.refused("unknown_key")
    (signing / "2026-12.pem").unlink()
    until(lambda: rig.refused("unknown_key") > refused, "the old key to be refused", WITHIN_S)
    # A file that cannot be used changes nothing.
    (signing / "2026-12.pem").write_bytes(fresh)
    trusted.write_bytes(b"-----BEGIN PUBLIC KEY-----\nno\n-----END PUBLIC KEY-----\n")
    until(lambda: rig.pod.readyz()["trusted_keys_unusable"], "the fault to be told")
    rig.settled()
    assert rig.pod.readyz()["trusted_keys"] == 1
    trusted.write_bytes(before + public_pem(fresh, "test")[1])
    until(lambda: not rig.pod.readyz()["trusted_keys_unusable"], "the file to be read again")
    assert rig.pod.child("agent") == agent


def test_what_was_loaded_before_keys_were_pinned_is_loaded_anew(keys: Path, rig: Rig, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Pod(data, rig.plane.address, SIDESTEP_SHUTDOWN_GRACE="2s") as pod:
        unpinned = Rig(rig.plane, rig.between, pod)
        unpinned.active = rig.active
        unpinned.settled()
        assert "development mode" in pod.readyz()["trusted_keys"]
        unpinned.close()
        pod.stop()
    with Pod(data, rig.plane.address, SIDESTEP_TRUSTED_KEYS=str(keys / "trusted.pem")) as pod:
        until(
            lambda: pod.metric("sidestep_sync_snapshots_total") >= 2,
            "both lanes to be loaded",
            WITHIN_S,
        )
        pinned = Rig(rig.plane, rig.between, pod)
        pinned.active = rig.active
        pinned.settled()
        pinned.close()


def test_a_sidecar_does_not_start_on_keys_it_cannot_read(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sidecar.app", "check"],
        env={"SIDESTEP_TENANT": "acme", "SIDESTEP_TRUSTED_KEYS": str(tmp_path / "none.pem"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "SIDESTEP_TRUSTED_KEYS: " in done.stderr
    assert "no such file" in done.stderr
