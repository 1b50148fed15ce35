"""The agent as a process: a scripted control plane on one side, a collector on the other, real files in between."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from sidestep.v1 import resources_pb2

from engine.names import Collection, Lane
from sidecar.journal.cursor import Tally, load_cursor
from sidecar.journal.export import open_exporter
from sidecar.journal.resource import load_resource
from sidecar.journal.segment import SegmentWriter, list_segments, worker_name
from sidecar.journal.shipment import FolderInUseError, Shipment, ship_folder
from sidecar.otel import Otlp
from sidecar.page import AgentWord, Page, State, Word, boottime_ms
from sidecar.store.generation import DataDir, mark_suspect
from sidecar.store.reader import Reader
from tests.fakes.controlplane import ControlPlane
from tests.fakes.history import History
from tests.fakes.otlp import OtlpReceiver, always
from tests.fakes.records import encoded_records
from tests.fakes.shipping import ids


def until(condition: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what
        pause.wait(0.02)


class Pod:
    """A data directory with its page, the agent's two neighbours, and the agent itself when started."""

    def __init__(self, data: Path, plane: ControlPlane, receiver: OtlpReceiver) -> None:
        self.data = data
        self.plane = plane
        self.receiver = receiver
        self.page = Page.create(data / "page", 1)
        self.agent: subprocess.Popen[str] | None = None

    def start(self, **settings: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SIDESTEP_", "OTEL_"))}
        environment |= {
            "SIDESTEP_TENANT": "acme",
            "SIDESTEP_DATA_DIR": str(self.data),
            "SIDESTEP_CONTROL_PLANE": self.plane.address,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.receiver.endpoint}",
            "SIDESTEP_SHUTDOWN_GRACE": "5s",
            "SIDESTEP_SIDECAR_NAME": "pod-1",
        } | settings
        command = [sys.executable, "-m", "sidecar.app", "agent", "--parent", str(os.getpid())]
        self.agent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        return self.agent

    def wait_for_state(self, state: State) -> None:
        assert self.agent is not None
        pid = self.agent.pid
        until(lambda: self.page.agent.pid == pid and self.page.agent.state is state, f"{self.page.agent.state}")

    def end(self) -> tuple[int, str]:
        """SIGTERM, exit code, standard error."""
        assert self.agent is not None
        self.agent.terminate()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        assert self.agent is not None
        _, errors = self.agent.communicate(timeout=15)
        code = self.agent.returncode
        self.agent = None
        return code, errors

    def count(self, word: AgentWord) -> int:
        return self.page.agent.get(word)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with ControlPlane() as plane, OtlpReceiver() as receiver:
        pod = Pod(tmp_path, plane, receiver)
        yield pod
        if pod.agent is not None:
            pod.agent.kill()
            pod.agent.communicate()


def grants(*names: str) -> dict[tuple[int, str], bytes | None]:
    return {
        (int(Collection.GRANTS), name): resources_pb2.Grant(
            name=f"tenants/acme/grants/{name}", subject="alice", actions=["*"]
        ).SerializeToString()
        for name in names
    }


def load(pod: Pod, urgent: History, bulk: History) -> None:
    """Plays one stream: scope, both snapshots, heartbeats."""
    stream = pod.plane.accept()
    assert stream.hello.sidecar == "pod-1"
    stream.scope("acme")
    stream.snapshot(urgent)
    stream.snapshot(bulk)
    stream.follow(urgent, bulk)


def test_it_loads_data_and_says_so_in_the_page(pod: Pod) -> None:
    urgent, bulk = History(lane=Lane.URGENT), History(lane=Lane.BULK)
    urgent.commit(grants("g1"))
    urgent.commit(grants("g2"))
    pod.start()
    pod.wait_for_state(State.NOT_LOADED)
    load(pod, urgent, bulk)
    pod.wait_for_state(State.SERVING)
    agent = pod.page.agent
    until(lambda: agent.get(Word.URGENT_REVISION) == 2 and agent.get(Word.BULK_REVISION) == 0, "revisions")
    assert pod.count(AgentWord.SYNC_CONNECTED) == 1
    reader = Reader(pod.data)
    with reader.view() as view:
        assert view.get(Collection.GRANTS, "acme", "g2") is not None
    reader.close()
    heartbeat = agent.get(Word.HEARTBEAT_MS)
    until(lambda: agent.get(Word.HEARTBEAT_MS) > heartbeat, "beats")
    code, errors = pod.end()
    assert code == 0, errors


def test_a_record_this_version_cannot_serve_is_refused_and_counted(pod: Pod) -> None:
    urgent, bulk = History(lane=Lane.URGENT), History(lane=Lane.BULK)
    urgent.commit(grants("g1"))
    pod.start()
    stream = pod.plane.accept()
    stream.scope("acme")
    stream.snapshot(urgent)
    stream.snapshot(bulk)
    policy = resources_pb2.Policy(name="tenants/acme/policies/p", document='{"kind": "Riddle"}', version=1)
    stream.delta(urgent.commit({(int(Collection.POLICIES), "p"): policy.SerializeToString()}))
    refusal = stream.expect("refusal").refusal
    assert refusal.code == "policy_rejected"
    until(lambda: pod.count(AgentWord.SYNC_REFUSALS) == 1, "refusals")
    assert pod.page.agent.get(Word.URGENT_REVISION) == 1
    pod.end()


def test_it_ships_while_it_runs_and_the_rest_when_it_is_told_to_stop(pod: Pod) -> None:
    writer = SegmentWriter(pod.data / "journal", worker_name(0), 1 << 26)
    writer.append(encoded_records(20))
    pod.start()
    pod.receiver.wait_for_spans(20)
    assert pod.receiver.resources[0]["service.name"] == "sidestep"
    assert pod.receiver.resources[0]["service.instance.id"] == "pod-1"
    pod.receiver.delay_s = 0.3  # so that the next batches are under way when it stops
    writer.append(encoded_records(1500))
    writer.close()
    pod.page.set_drain_deadline(boottime_ms() + 10_000)
    code, errors = pod.end()
    assert code == 0, errors
    assert len({span.span_id for span in pod.receiver.spans}) == 1520
    assert not list_segments(pod.data / "journal")
    assert pod.count(AgentWord.JOURNAL_SHIPPED) == 1520


def test_told_to_stop_while_it_starts_it_still_ships(pod: Pod) -> None:
    writer = SegmentWriter(pod.data / "journal", worker_name(0), 1 << 26)
    writer.append(encoded_records(5))
    writer.close()
    agent = pod.start()
    blocked = Path(f"/proc/{agent.pid}/status")
    until(lambda: "SigBlk:\t0000000000004000" in blocked.read_text(), "SIGTERM is held back")
    code, errors = pod.end()
    assert code == 0, errors
    assert len(pod.receiver.spans) == 5


@pytest.mark.parametrize("receiver", ["down", "hanging"])
def test_draining_ends_at_the_deadline_and_keeps_what_is_left(pod: Pod, receiver: str) -> None:
    writer = SegmentWriter(pod.data / "journal", worker_name(0), 1 << 26)
    if receiver == "down":
        pod.receiver.stop()
    pod.receiver.delay_s = 60.0
    pod.start()
    pod.wait_for_state(State.NOT_LOADED)
    writer.append(encoded_records(5))
    writer.close()
    if receiver == "hanging":
        until(lambda: len(pod.receiver.calls) == 1, "a call in flight")
    pod.page.set_drain_deadline(boottime_ms() + 2500)
    began = time.monotonic()
    code, errors = pod.end()
    assert code == 0, errors
    assert time.monotonic() - began < 2.5
    assert "records not shipped" in errors
    assert len(list_segments(pod.data / "journal")) == 1
    # The next start ships them.
    pod.page.set_drain_deadline(0)
    pod.receiver.stop()
    pod.receiver.delay_s = 0.0
    pod.receiver.start()
    pod.start()
    pod.receiver.wait_for_spans(5)
    assert pod.end()[0] == 0


@pytest.mark.parametrize("collector", ["down", "hanging", "refusing"])
def test_draining_it_spools_what_it_cannot_ship(pod: Pod, tmp_path: Path, collector: str) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    writer = SegmentWriter(pod.data / "journal", worker_name(0), 1 << 26, segment_bytes=1 << 16)
    records = encoded_records(300)
    writer.append(records[:100])
    pod.start(SIDESTEP_JOURNAL_SPOOL=str(spool))
    pod.receiver.wait_for_spans(100)
    if collector == "down":
        pod.receiver.stop()
    if collector == "refusing":
        pod.receiver.fail = always(grpc.StatusCode.UNAUTHENTICATED)
    pod.receiver.delay_s = 60.0 if collector == "hanging" else 0.0
    for record in records[100:]:
        writer.append([record])
    writer.close()
    until(lambda: pod.count(AgentWord.EXPORT_STATE) > 1 or len(pod.receiver.calls) > 1, "it has tried")
    pod.page.set_drain_deadline(boottime_ms() + 5000)
    code, errors = pod.end()
    assert code == 0, errors
    assert "200 records were not shipped in time" in errors
    assert not list_segments(pod.data / "journal")
    assert pod.count(AgentWord.JOURNAL_SPOOLED) == 200
    pod.receiver.delay_s, pod.receiver.fail = 0.0, None
    pod.receiver.stop()
    pod.receiver.start()
    (shipment,) = asyncio.run(ship_to(pod.receiver, spool))
    assert (shipment.sidecar, shipment.shipped, shipment.left) == ("pod-1", 200, 0)
    assert {key: pod.receiver.resources[-1][key] for key in ("service.instance.id", "service.name")} == {
        "service.instance.id": "pod-1",
        "service.name": "sidestep",
    }
    assert sorted(pod.receiver.decision_ids()) == sorted(ids(records))


def test_a_spool_that_cannot_be_written_is_named_at_the_start_and_costs_no_record(pod: Pod, tmp_path: Path) -> None:
    spool = tmp_path / "missing"
    writer = SegmentWriter(pod.data / "journal", worker_name(0), 1 << 26)
    pod.receiver.stop()
    pod.start(SIDESTEP_JOURNAL_SPOOL=str(spool))
    until(lambda: pod.count(AgentWord.SPOOL_UNUSABLE) == 1, "it is said in the page")
    pod.wait_for_state(State.NOT_LOADED)
    writer.append(encoded_records(5))
    writer.close()
    pod.page.set_drain_deadline(boottime_ms() + 4000)
    code, errors = pod.end()
    assert code == 0, errors
    assert f"SIDESTEP_JOURNAL_SPOOL cannot be used: {spool}" in errors
    assert "the journal could not be spooled" in errors
    assert "they stay in" in errors
    pod.page.set_drain_deadline(0)
    pod.receiver.start()
    pod.start()
    pod.receiver.wait_for_spans(5)
    until(lambda: pod.count(AgentWord.SPOOL_UNUSABLE) == 0, "no spool is set")
    assert pod.end()[0] == 0


def test_stopped_by_someone_else_it_spools_nothing(pod: Pod, tmp_path: Path) -> None:
    """The workers go on, and so will the next agent."""
    spool = tmp_path / "spool"
    spool.mkdir()
    writer = SegmentWriter(pod.data / "journal", worker_name(0), 1 << 26)
    writer.append(encoded_records(5))
    pod.receiver.stop()
    pod.start(SIDESTEP_JOURNAL_SPOOL=str(spool), SIDESTEP_SHUTDOWN_GRACE="3s")
    pod.wait_for_state(State.NOT_LOADED)
    assert pod.end()[0] == 0
    assert not list(spool.iterdir())
    writer.close()
    assert len(list_segments(pod.data / "journal")) == 1


def test_killed_while_it_spools_nothing_is_lost(pod: Pod, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    writer = SegmentWriter(pod.data / "journal", worker_name(0), 1 << 30)
    records = encoded_records(500)
    for _ in range(20):
        writer.append(records)  # so that copying takes a while
    writer.close()
    pod.receiver.stop()
    pod.start(SIDESTEP_JOURNAL_SPOOL=str(spool))
    pod.wait_for_state(State.NOT_LOADED)
    pod.page.set_drain_deadline(boottime_ms() + 4000)
    assert pod.agent is not None
    pod.agent.terminate()
    until(lambda: bool(list(spool.glob("pod-1/.*.part"))) or pod.agent.poll() is not None, "it spools")  # type: ignore[union-attr]
    pod.agent.terminate()  # a second one changes nothing
    pod.agent.kill()
    pod.wait()
    pod.page.set_drain_deadline(0)
    pod.receiver.start()
    pod.start()
    if list(spool.glob("pod-1/[0-9]*")):
        asyncio.run(ship_to(pod.receiver, spool))
    until(lambda: not list_segments(pod.data / "journal"), "shipped")
    assert set(pod.receiver.decision_ids()) == set(ids(records))
    assert pod.count(AgentWord.JOURNAL_LOST) == 0
    assert pod.end()[0] == 0


def test_started_while_draining_it_ships_without_the_store(pod: Pod) -> None:
    """Its predecessor died just before; whoever holds the store, or how long examining it takes, is no matter now."""
    writer = SegmentWriter(pod.data / "journal", worker_name(0), 1 << 26)
    writer.append(encoded_records(5))
    writer.close()
    pod.page.set_drain_deadline(boottime_ms() + 10_000)
    pod.start()
    pod.receiver.wait_for_spans(5)
    code, errors = pod.end()
    assert code == 0, errors
    assert DataDir(pod.data).current() is None
    assert not list_segments(pod.data / "journal")


def test_it_says_whose_journal_it_is_beside_the_segments(pod: Pod) -> None:
    pod.start(OTEL_RESOURCE_ATTRIBUTES="team=payments")
    pod.wait_for_state(State.NOT_LOADED)
    attributes = load_resource(pod.data / "journal")
    assert attributes is not None
    assert attributes["service.instance.id"] == "pod-1"
    assert attributes["team"] == "payments"
    assert pod.end()[0] == 0


def test_a_disk_that_cannot_take_that_does_not_keep_it_from_shipping(pod: Pod) -> None:
    """As on a full disk, where only shipping makes room."""
    journal = pod.data / "journal"
    (journal / "resource.json.new").mkdir(parents=True)
    writer = SegmentWriter(journal, worker_name(0), 8 << 20)
    writer.append(encoded_records(3))
    writer.close()
    pod.start()
    until(lambda: len(pod.receiver.spans) == 3, "records to be shipped")
    assert load_resource(journal) is None
    assert pod.end()[0] == 0


def test_while_it_runs_nothing_else_may_ship_its_journal(pod: Pod) -> None:
    pod.start()
    pod.wait_for_state(State.NOT_LOADED)
    until(lambda: (pod.data / "journal" / "cursor").exists(), "the cursor is saved")
    with pytest.raises(FolderInUseError):
        asyncio.run(ship_to(pod.receiver, pod.data))
    assert pod.end()[0] == 0
    (shipment,) = asyncio.run(ship_to(pod.receiver, pod.data))
    assert shipment.left == 0


async def ship_to(receiver: OtlpReceiver, folder: Path) -> list[Shipment]:
    exporter = open_exporter(Otlp(receiver.endpoint), "traces")
    try:
        return await ship_folder(folder, exporter)
    finally:
        await exporter.close()


def test_killed_at_any_moment_it_loses_no_record(pod: Pod) -> None:
    writer = SegmentWriter(pod.data / "journal", worker_name(0), 1 << 26, segment_bytes=1 << 16)
    written = 0
    for _round in range(3):
        agent = pod.start()
        for _ in range(20):
            writer.append(encoded_records(20))
            written += 20
        pod.receiver.wait_for_spans(written - 200)
        agent.kill()
        agent.communicate()
        pod.agent = None
    writer.close()
    pod.start()
    until(lambda: not list_segments(pod.data / "journal"), "shipped")
    assert len({span.span_id for span in pod.receiver.spans}) == written
    assert pod.count(AgentWord.JOURNAL_LOST) == 0
    assert pod.end()[0] == 0
    cursor = load_cursor(pod.data / "journal")
    assert cursor is not None
    assert cursor.chains == {writer.chain: Tally(written, writer.head)}, "sent twice, counted once"


def test_without_a_sink_records_are_discarded(pod: Pod) -> None:
    writer = SegmentWriter(pod.data / "journal", worker_name(0), 1 << 26)
    writer.append(encoded_records(10))
    pod.start(SIDESTEP_JOURNAL_SINK="none")
    until(lambda: pod.count(AgentWord.JOURNAL_DISCARDED) == 10, "discarded")
    writer.close()
    code, errors = pod.end()
    assert code == 0
    assert "decisions are not kept" in errors
    assert not pod.receiver.spans


def test_a_suspect_generation_ends_it_so_that_the_next_start_examines_it(pod: Pod) -> None:
    urgent, bulk = History(lane=Lane.URGENT), History(lane=Lane.BULK)
    urgent.commit(grants("g1"))
    pod.start()
    load(pod, urgent, bulk)
    pod.wait_for_state(State.SERVING)
    generation = DataDir(pod.data).current()
    assert generation is not None
    mark_suspect(generation, "told to")
    code, errors = pod.wait()
    assert code == 1
    assert "suspect" in errors
    # It is sound after all, so the next start serves it without the control plane.
    pod.plane.stop()
    pod.start()
    pod.wait_for_state(State.SERVING)
    assert pod.page.agent.get(Word.URGENT_REVISION) == 1
    assert pod.end()[0] == 0


def test_the_scrub_finds_a_flipped_byte_and_the_data_is_loaded_anew(pod: Pod) -> None:
    urgent, bulk = History(lane=Lane.URGENT), History(lane=Lane.BULK)
    urgent.commit(grants("needle"))
    pod.start(SIDESTEP_SCRUB_INTERVAL="1s")
    load(pod, urgent, bulk)
    pod.wait_for_state(State.SERVING)
    until(lambda: pod.count(AgentWord.SCRUBS) >= 1, "scrubbed")
    assert pod.count(AgentWord.SCRUB_FINDINGS) == 0
    generation = DataDir(pod.data).current()
    assert generation is not None
    data = generation / "data.mdb"
    with data.open("r+b") as file:
        content = file.read()
        at = content.rindex(b"tenants/acme/grants/needle")
        file.seek(at)
        file.write(b"T")
    code, _ = pod.wait()
    assert code == 1
    assert pod.count(AgentWord.SCRUB_FINDINGS) == 1
    pod.start()
    pod.wait_for_state(State.NOT_LOADED)
    load(pod, urgent, bulk)
    pod.wait_for_state(State.SERVING)
    assert pod.end()[0] == 0


def test_a_second_agent_on_the_same_directory_is_refused(pod: Pod) -> None:
    first = pod.start()
    pod.wait_for_state(State.NOT_LOADED)
    pod.start()
    code, errors = pod.wait()
    assert code == 1
    assert "in use by another writer" in errors
    first.terminate()
    first.communicate(timeout=15)
    assert first.returncode == 0


def test_it_does_not_outlive_its_parent(pod: Pod) -> None:
    """Started for a parent that is already gone."""
    command = [sys.executable, "-m", "sidecar.app", "agent", "--parent", "1"]
    done = subprocess.run(
        command, env=os.environ | {"SIDESTEP_TENANT": "acme"}, capture_output=True, text=True, timeout=15
    )
    assert done.returncode == 1
    assert "the supervisor is gone" in done.stderr
