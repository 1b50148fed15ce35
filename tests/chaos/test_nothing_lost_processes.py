"""Whatever process of the sidecar dies, every answered decision reaches the collector (DESIGN section 8)."""

from __future__ import annotations

import os
import random
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from sidecar.journal.chain import link
from sidecar.journal.reader import Entry, SegmentReader
from sidecar.journal.segment import FRAME, SegmentWriter, checksum, list_segments, worker_name
from tests.chaos.account import assert_accounted, audit, decision_ids, faults, recorded, sidestep
from tests.chaos.callers import Callers
from tests.chaos.collector import GRPC, HTTP, WITHIN_S, Collector, shipping_pod
from tests.chaos.pod import Plane, pass_time
from tests.fakes.records import encoded_records
from tests.fakes.shipping import ids
from tests.processes import until

# Blows between two of the supervisor, which lets the killed be started again without a pause.
ROUND = 5


@pytest.mark.parametrize(
    ("protocol", "kills", "workers"),
    [
        (GRPC, 6, 2),
        pytest.param(GRPC, 30, 2, marks=pytest.mark.e2e),
        pytest.param(HTTP, 30, 1, marks=pytest.mark.e2e),
    ],
)
def test_agent_and_workers_killed_at_random(
    tmp_path: Path, data: Path, protocol: str, kills: int, workers: int
) -> None:
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    rng = random.Random(seed)
    with Collector(tmp_path / "collector", protocol) as collector:
        collector.start()
        with (
            shipping_pod(data, collector, SIDESTEP_WORKERS=str(workers)) as pod,
            Callers(pod.address, count=2 * workers) as callers,
        ):
            victims = ["agent", "worker"] * (kills // 2)
            rng.shuffle(victims)
            for number, role in enumerate(victims, 1):
                pass_time(rng, 0.3)
                os.kill(rng.choice(until(partial(pod.children, role), f"the {role}; {pod.log()}")), signal.SIGKILL)
                if number % ROUND == 0:
                    assert pod.metric("sidestep_journal_lost_total") == 0
                    pass_time(rng, 0.3)
                    pod.kill_supervisor()
                    pod.start()
                callers.wait_for_answers(10)
            # Restarted in order, in the end.
            callers.wait_for_answers(50)
            assert pod.metric("sidestep_journal_lost_total") == 0
            assert pod.stop() == 0
            pod.start()
            callers.wait_for_answers(50)
            callers.end()
            collector.wait_for(callers.ids)
            assert pod.metric("sidestep_journal_lost_total") == 0
        assert_accounted(callers, recorded(collector.export()))


def test_torn_and_cut_records(tmp_path: Path, plane: Plane) -> None:
    """A write that was cut short tears a record that nobody was told of. A record that was cut off later is the one lost."""
    data = tmp_path / "data"
    journal = data / "journal"
    with Collector(tmp_path / "collector") as collector:
        pod = shipping_pod(data, collector, plane.address, SIDESTEP_SIDECAR_NAME="torn")
        with pod:
            until(lambda: pod.readyz()["ok"], "data", WITHIN_S)
            with Callers(pod.address, batches=False) as callers:
                callers.wait_for_answers(50)
                pod.kill_supervisor()
                (torn,) = list_segments(journal)
                _append_half_a_record(journal / str(torn))
                pod.start()
                callers.wait_for_answers(50)
            cut = list_segments(journal)[-1]
            last = _records(journal / str(cut))[-1]
            until(lambda: _anchored(plane, cut.chain) == last.sequence + 1, "the last record to be anchored", WITHIN_S)
            pod.kill_supervisor()
            _cut(journal / str(cut), last)
            collector.start()
            pod.start()
            gone = decision_ids([last.payload])
            collector.wait_for(set(callers.ids) - gone)
            until(lambda: pod.metric("sidestep_journal_torn_total") == 2, "both torn tails to be cut", WITHIN_S)
            assert pod.metric("sidestep_journal_lost_total") == 0, "from within, the record looks as if it never was"
            assert pod.stop() == 0
    found = recorded(collector.export())
    assert set(callers.ids) - found.decisions == gone != set()
    assert callers.problems == []
    assert len(found.decisions - set(callers.ids)) <= callers.unknown
    assert faults(found) == []
    accounts = audit(plane.address, "torn")
    assert {chain: account["lost"] for chain, account in accounts.items() if account["lost"]} == {cut.chain: 1}
    assert {account["waiting"] for account in accounts.values()} == {0}
    shown = sidestep("journal", "verify", str(collector.export()), SIDESTEP_SERVER=plane.address)
    assert shown.exit_code == 13
    assert f"record {last.sequence}: missing at the end" in shown.output
    assert f"{len(found.verification.chains) - 1} whole, 1 not" in shown.output


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_left_at_the_end_is_spooled_and_shipped_later(tmp_path: Path, data: Path, killed: bool) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    earlier = _earlier_worker(data / "journal", 600)
    with Collector(tmp_path / "collector") as collector:
        with shipping_pod(data, collector, SIDESTEP_JOURNAL_SPOOL=str(spool), SIDESTEP_SHUTDOWN_GRACE="10s") as pod:
            with Callers(pod.address) as callers:
                callers.wait_for_answers(150)
            agent = pod.child("agent")
            assert agent is not None
            pod.terminate()
            if killed:
                _kill_while_it_copies(agent, spool)
            assert pod.stop() == 0
        assert bool(list(spool.glob("*/.*.part"))) == killed, pod.log()
        if killed:  # another one spooled it all, if there was time for it
            assert_accounted(callers, recorded(tmp_path), others=earlier)
        else:
            assert list_segments(data / "journal") == [], pod.log()
            assert_accounted(callers, recorded(spool), others=earlier)
        collector.start()
        shipped = sidestep("journal", "ship", str(tmp_path), "--no-report", **collector.settings)
        assert shipped.exit_code == 0, shipped.output
        assert_accounted(callers, recorded(collector.export()), others=earlier)
        assert set(earlier) <= collector.ids()


def _earlier_worker(journal: Path, files: int) -> list[str]:
    """What an earlier worker left, in many small files: copying them takes a while. Returns the decision ids."""
    writer = SegmentWriter(journal, worker_name(0), 1 << 26, segment_bytes=1)
    records = encoded_records(files)
    for record in records:
        writer.append([record])
    writer.close()
    return ids(records)


def _kill_while_it_copies(agent: int, spool: Path) -> None:
    until(lambda: list(spool.glob("pod-7/.*.part/*.seg")), "the first copies", WITHIN_S)
    with suppress(ProcessLookupError):
        os.kill(agent, signal.SIGKILL)


def _records(segment: Path) -> list[Entry]:
    reader = SegmentReader(segment)
    found = []
    while entries := reader.read(1000):
        found += entries
    reader.close()
    return found


def _append_half_a_record(segment: Path) -> None:
    """As a write leaves it that was cut short."""
    before, record = _records(segment)[-1], encoded_records(1)[0]
    head = link(before.hash, record)
    frame = FRAME.pack(len(record), checksum(len(record), head, record), head) + record
    with segment.open("ab") as file:
        file.write(frame[: len(frame) // 2])


def _cut(segment: Path, last: Entry) -> None:
    """Within the last record."""
    os.truncate(segment, last.after.offset - len(last.payload) // 2)


def _anchored(plane: Plane, chain: str) -> int:
    return audit(plane.address, "torn").get(chain, {}).get("records", 0)
