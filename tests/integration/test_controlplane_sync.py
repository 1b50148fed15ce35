"""A control plane served over real gRPC, followed by a scripted sidecar that checks every byte it is sent."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from sidestep.v1 import admin_pb2, admin_pb2_grpc, sync_pb2, sync_pb2_grpc

from controlplane.app import control_plane
from controlplane.config import Settings
from controlplane.store import Store, Write
from engine.names import Collection, Lane
from tests.fakes.replica import BULK, URGENT, WITHIN_S, Key, Replica, ReplicaLane

GRANTS, DEVICES = Collection.GRANTS, Collection.DEVICES


class Rig:
    """A control plane in this process, and a store of its own on the same database, as another process would have."""

    def __init__(self, address: str, store: Store) -> None:
        self.store = store
        self.channel = grpc.aio.insecure_channel(address)

    @asynccontextmanager
    async def sidecar(self, lanes: dict[Key, ReplicaLane] | None = None) -> AsyncIterator[Replica]:
        call = sync_pb2_grpc.SyncServiceStub(self.channel).Sync()  # type: ignore[no-untyped-call]
        try:
            yield Replica(call, {} if lanes is None else lanes)
        finally:
            call.cancel()

    async def listed(self, tenant: str = "") -> list[admin_pb2.SidecarStatus]:
        stub = admin_pb2_grpc.AdminServiceStub(self.channel)  # type: ignore[no-untyped-call]
        parent = f"tenants/{tenant}" if tenant else ""
        response = await stub.ListSidecars(admin_pb2.ListSidecarsRequest(parent=parent))
        return list(response.sidecars)

    async def admitted(self, name: str) -> None:
        """Connects as soon as there is room, and leaves."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                try:
                    async with self.sidecar() as sidecar:
                        await sidecar.hello(name)
                        await sidecar.step()
                        return
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await asyncio.sleep(0.02)

    async def status_where(self, condition: Callable[[admin_pb2.SidecarStatus], bool]) -> admin_pb2.SidecarStatus:
        async with asyncio.timeout(WITHIN_S):
            while True:
                for status in await self.listed():
                    if condition(status):
                        return status
                await asyncio.sleep(0.02)


def settings(tmp_path: Path, **overrides: Any) -> Settings:
    return Settings(
        **{
            "listen": "127.0.0.1:0",
            "http_listen": "127.0.0.1:0",
            "database_url": f"sqlite+aiosqlite:///{tmp_path}/cp.db",
            "heartbeat": 0.2,
            "drain": 1.0,
            **overrides,
        }
    )


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Runs a scenario against a control plane, with both closed afterwards."""

    def run(scenario: Callable[[Rig], Awaitable[None]], **overrides: Any) -> None:
        async def body() -> None:
            configured = settings(tmp_path, **overrides)
            async with control_plane(configured) as serving:
                store = await Store.open(configured.database_url)
                rig = Rig(serving.grpc, store)
                try:
                    await scenario(rig)
                finally:
                    await rig.channel.close()
                    await store.close()

        asyncio.run(body())

    return run


def grant(n: int, value: str = "v") -> Write:
    return Write(GRANTS, f"g{n}", value.encode())


def devices(count: int, value: bytes = bytes(300), start: int = 0) -> list[Write]:
    return [Write(DEVICES, f"d{n:06d}", value) for n in range(start, start + count)]


async def assert_equal(rig: Rig, sidecar: Replica, tenant: str = "acme") -> None:
    """What the sidecar holds is what the store holds."""
    for lane in Lane:
        async with rig.store.read_lane(tenant, lane) as (head, batches):
            records = {(c, i): v async for batch in batches for c, i, v in batch}
        held = sidecar.lanes[(tenant, lane)]
        assert held.records == records
        assert (held.cursor.revision, held.cursor.digest) == (head.revision, head.digest)


def test_a_fresh_sidecar_gets_snapshots_then_deltas(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [grant(1), *devices(999)])
        await rig.store.commit("acme", devices(1_000, start=999))
        async with rig.sidecar() as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 1), ("acme", BULK, 2))
            assert sidecar.chunks[("acme", BULK)] >= 3
            await assert_equal(rig, sidecar)
            await rig.store.commit("acme", [grant(1, "changed"), grant(2), Write(DEVICES, "d000001", None)])
            await sidecar.at(("acme", URGENT, 2), ("acme", BULK, 3))
            await assert_equal(rig, sidecar)
        assert sidecar.log[0][0] == "scope"
        assert [message.tenants for kind, message in sidecar.log if kind == "scope"][-1] == ["acme"]
        kinds = [kind for kind in sidecar.kinds() if kind != "scope"]
        # One snapshot at a time, urgent first, each announced.
        first = ["snapshot_required", "snapshot_offer", "snapshot_chunk", "snapshot_end", "snapshot_required"]
        assert kinds[:5] == first
        required = [message for kind, message in sidecar.log if kind == "snapshot_required"]
        assert [(message.lane, message.reason) for message in required] == [(URGENT, "no cursor"), (BULK, "no cursor")]

    run(scenario)


def test_a_sidecar_that_comes_back_resumes_from_its_cursors(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [grant(1), *devices(10)])
        lanes: dict[Key, ReplicaLane] = {}
        async with rig.sidecar(lanes) as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 1), ("acme", BULK, 1))
        for n in range(40):
            await rig.store.commit("acme", [grant(n, "new"), *devices(1, bytes([n]), start=n)])
        async with rig.sidecar(lanes) as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 41), ("acme", BULK, 41))
            await assert_equal(rig, sidecar)
            assert set(sidecar.kinds()) == {"scope", "delta"}
        # And with nothing new, nothing but heartbeats that confirm it.
        async with rig.sidecar(lanes) as sidecar:
            await sidecar.hello()
            await sidecar.until(lambda: [kind for kind, _ in sidecar.log].count("heartbeat") >= 2)
            assert sidecar.kinds() == ["scope"]
            heads = {(head.tenant, head.lane): head for head in sidecar.log[-1][1].heads}
            assert heads == {key: lane.cursor for key, lane in lanes.items()}

    run(scenario)


SPOILERS: dict[str, Callable[[sync_pb2.Cursor], None]] = {
    "digest mismatch": lambda cursor: setattr(cursor, "digest", bytes(32)),
    "other epoch": lambda cursor: setattr(cursor, "epoch", 2),
    "cursor is ahead": lambda cursor: setattr(cursor, "revision", 1_000),
}


@pytest.mark.parametrize(
    ("reason", "behind"), [*((reason, behind) for reason in SPOILERS for behind in (False, True)), ("compacted", True)]
)
def test_a_cursor_the_log_does_not_lead_on_from_gets_a_snapshot(run: Any, reason: str, behind: bool) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [grant(1)])
        lanes: dict[Key, ReplicaLane] = {}
        async with rig.sidecar(lanes) as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 1), ("acme", BULK, 0))
        if behind:
            await rig.store.commit("acme", [grant(2)])
            await rig.store.commit("acme", [grant(3)])
        if reason == "compacted":
            await rig.store.compact("acme", Lane.URGENT, 2)
        else:
            SPOILERS[reason](lanes[("acme", URGENT)].cursor)
        async with rig.sidecar(lanes) as sidecar:
            await sidecar.hello()
            await sidecar.until(lambda: "snapshot_end" in sidecar.kinds())
            await sidecar.at(("acme", URGENT, 3 if behind else 1), ("acme", BULK, 0))
            await assert_equal(rig, sidecar)
            required = [message for kind, message in sidecar.log if kind == "snapshot_required"]
            assert [(message.lane, message.reason) for message in required] == [(URGENT, reason)]

    run(scenario)


def test_a_new_epoch_makes_connected_sidecars_start_over(run: Any, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [grant(1)])
        async with rig.sidecar() as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 1), ("acme", BULK, 0))
            with sqlite3.connect(tmp_path / "cp.db") as connection:
                connection.execute("UPDATE schema SET epoch = 2")
            connection.close()
            await sidecar.until(lambda: all(lane.cursor.epoch == 2 for lane in sidecar.lanes.values()))
            await rig.store.commit("acme", [grant(2)])
            await sidecar.at(("acme", URGENT, 2))
            await assert_equal(rig, sidecar)

    run(scenario)


def test_a_slow_bulk_consumer_delays_no_urgent_delta_and_holds_one_bulk_delta(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [grant(0), *devices(1)])
        async with rig.sidecar() as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 1), ("acme", BULK, 1))
            sidecar.acknowledge_bulk = False
            for n in range(10):
                await rig.store.commit("acme", devices(1_000, bytes([n]) * 300))
            for n in range(20):
                await rig.store.commit("acme", [grant(n, "urgent")])
                await sidecar.at(("acme", URGENT, n + 2))
            assert sidecar.lanes[("acme", BULK)].cursor.revision == 2
            sidecar.acknowledge_bulk = True
            await sidecar.send(ack=sync_pb2.Ack(cursor=sidecar.lanes[("acme", BULK)].cursor))
            await sidecar.at(("acme", BULK, 11))
            await assert_equal(rig, sidecar)
            assert "snapshot_required" not in sidecar.kinds()[-30:]

    run(scenario)


def test_urgent_deltas_pass_a_snapshot_whose_chunks_are_not_acknowledged(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [grant(0)])
        for start in range(0, 3_000, 1_000):
            await rig.store.commit("acme", devices(1_000, start=start))
        async with rig.sidecar() as sidecar:
            sidecar.acknowledge_bulk = False
            await sidecar.hello()
            await sidecar.until(lambda: sidecar.chunks.get(("acme", BULK)) == 1)
            for n in range(5):
                await rig.store.commit("acme", [grant(n, "urgent")])
                await sidecar.at(("acme", URGENT, n + 2))
            assert sidecar.chunks[("acme", BULK)] == 1
            # The bulk lane moves on meanwhile; its deltas come after the snapshot's end.
            await rig.store.commit("acme", devices(5, b"later"))
            sidecar.acknowledge_bulk = True
            await sidecar.send(ack=sync_pb2.Ack(cursor=sync_pb2.Cursor(tenant="acme", lane="LANE_BULK"), chunk=0))
            await sidecar.at(("acme", BULK, 4))
            await assert_equal(rig, sidecar)

    run(scenario)


def test_a_sidecar_that_never_acknowledges_a_chunk_is_let_go(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", devices(1_000))
        async with rig.sidecar() as sidecar:
            sidecar.acknowledge_bulk = False
            await sidecar.hello()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await sidecar.until(lambda: False)
            assert raised.value.code() is grpc.StatusCode.ABORTED
            assert "not acknowledged" in (raised.value.details() or "")

    run(scenario, ack_timeout=1.0)


def test_heartbeats_come_unasked_and_a_ping_is_answered_with_its_nonce(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [grant(1)])
        async with rig.sidecar() as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 1), ("acme", BULK, 0))
            started = time.monotonic()
            beats = [kind for kind, _ in sidecar.log].count("heartbeat")
            await sidecar.until(lambda: [kind for kind, _ in sidecar.log].count("heartbeat") >= beats + 4)
            assert 0.5 < time.monotonic() - started < 3.0
            beat = sidecar.log[-1][1]
            assert beat.nonce == 0
            assert abs(beat.server_time.ToNanoseconds() / 1e9 - time.time()) < 5
            assert [(head.tenant, head.lane, head.revision) for head in beat.heads] == [("acme", 1, 1), ("acme", 2, 0)]
            await sidecar.send(ping=sync_pb2.Ping(nonce=2**63 + 1))
            await sidecar.until(lambda: any(k == "heartbeat" and m.nonce == 2**63 + 1 for k, m in sidecar.log))

    run(scenario)


def test_a_tenant_that_comes_into_being_is_announced_and_sent(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.sidecar() as sidecar:
            await sidecar.hello()
            await sidecar.step()
            assert (sidecar.log[0][0], sidecar.log[0][1].tenants) == ("scope", [])
            await sidecar.until(lambda: sidecar.log[-1][0] == "heartbeat")
            assert list(sidecar.log[-1][1].heads) == []
            for tenant in ("zeta", "acme"):
                await rig.store.commit(tenant, [grant(1), *devices(3)])
                await sidecar.at((tenant, URGENT, 1), (tenant, BULK, 1))
                await assert_equal(rig, sidecar, tenant)
        scopes = [list(message.tenants) for kind, message in sidecar.log if kind == "scope"]
        assert scopes == [[], ["zeta"], ["acme", "zeta"]]

    run(scenario)


def test_a_sidecar_is_sent_the_tenants_of_its_scope_only(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        for tenant in ("acme", "other", "zeta"):
            await rig.store.commit(tenant, [grant(1)])
        async with rig.sidecar() as sidecar:
            # A cursor of a tenant out of scope opens no door to it.
            await sidecar.hello(cursors=[sync_pb2.Cursor(tenant="other", lane="LANE_URGENT", epoch=1)])
            await sidecar.send(snapshot_request=sync_pb2.SnapshotRequest(tenant="other", lane="LANE_URGENT"))
            await sidecar.at(("acme", URGENT, 1), ("acme", BULK, 0), ("zeta", URGENT, 1), ("zeta", BULK, 0))
            await rig.store.commit("other", [grant(2)])
            await rig.store.commit("zeta", [grant(2)])
            await sidecar.at(("zeta", URGENT, 2))
            await sidecar.until(lambda: sidecar.log[-1][0] == "heartbeat")
            assert {head.tenant for head in sidecar.log[-1][1].heads} == {"acme", "zeta"}
            assert {tenant for tenant, _ in sidecar.lanes} == {"acme", "zeta"}
            assert [message.tenants for kind, message in sidecar.log if kind == "scope"][-1] == ["acme", "zeta"]

    run(scenario, sync_scope="acme, zeta")


def test_a_refused_lane_is_left_alone_until_a_snapshot_is_asked_for(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [grant(1), *devices(1)])
        async with rig.sidecar() as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 1), ("acme", BULK, 1))
            refused = sync_pb2.Refusal(
                cursor=sidecar.lanes[("acme", URGENT)].cursor, revision=2, code="policy_rejected", detail="line 3"
            )
            await sidecar.send(refusal=refused)
            status = await rig.status_where(lambda status: bool(status.refusal))
            assert status.refusal == "tenants/acme urgent revision 2: policy_rejected: line 3"
            await rig.store.commit("acme", [grant(2), *devices(1, b"next")])
            await sidecar.at(("acme", BULK, 2))
            beats = [kind for kind, _ in sidecar.log].count("heartbeat")
            await sidecar.until(lambda: [kind for kind, _ in sidecar.log].count("heartbeat") >= beats + 2)
            assert sidecar.lanes[("acme", URGENT)].cursor.revision == 1
            await sidecar.send(
                snapshot_request=sync_pb2.SnapshotRequest(tenant="acme", lane="LANE_URGENT", reason="digest_mismatch")
            )
            await sidecar.at(("acme", URGENT, 2))
            assert [message.reason for kind, message in sidecar.log if kind == "snapshot_required"][-1] == "requested"
            await rig.status_where(lambda status: not status.refusal)
            await assert_equal(rig, sidecar)

    run(scenario)


def test_the_table_of_sidecars_follows_connections_and_acknowledgements(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [grant(1)])
        await rig.store.commit("other", [grant(1)])
        async with rig.sidecar() as sidecar:
            await sidecar.hello("pod-a")
            await sidecar.at(("acme", URGENT, 1), ("acme", BULK, 0), ("other", URGENT, 1), ("other", BULK, 0))
            status = await rig.status_where(lambda status: sum(cursor.epoch for cursor in status.cursors) == 4)
            assert (status.sidecar, status.instance, status.version, status.connected) == ("pod-a", "i", "1", True)
            held = {key: lane.cursor for key, lane in sidecar.lanes.items()}
            assert {(cursor.tenant, cursor.lane): cursor for cursor in status.cursors} == held
            assert [one.sidecar for one in await rig.listed("acme")] == ["pod-a"]
            assert await rig.listed("nobody") == []
            # A second connection under the same name speaks for the sidecar; the end of the first does not.
            async with rig.sidecar() as again:
                await again.hello("pod-a", instance="j")
                await again.at(*((tenant, lane, int(lane == URGENT)) for tenant, lane in sidecar.lanes))
                await rig.status_where(
                    lambda status: status.instance == "j" and sum(cursor.epoch for cursor in status.cursors) == 4
                )
                sidecar.disconnect()
                # There is room for a third only when the first has ended on the other side too.
                await rig.admitted("pod-b")
                assert {one.sidecar: one.connected for one in await rig.listed()}["pod-a"]
        await rig.status_where(lambda status: status.sidecar == "pod-a" and not status.connected)

    run(scenario, max_streams=2)


def test_one_too_many_is_told_when_to_come_back(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.sidecar() as first:
            await first.hello()
            await first.step()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async with rig.sidecar() as second:
                    await second.step()
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            encoded = dict(raised.value.trailing_metadata() or ())["grpc-status-details-bin"]
            assert isinstance(encoded, bytes)
            # google.rpc.Status: code (1), message (2), details (3).
            assert encoded[:2] == bytes((0x08, 8))
            details = encoded[2 + 2 + encoded[3] :]
            assert details[0] == 3 << 3 | 2
            packed = AnyMessage.FromString(details[2:])
            assert packed.type_url == "type.googleapis.com/google.rpc.RetryInfo"
            delay = Duration.FromString(packed.value[2:])
            assert 1.0 <= delay.ToNanoseconds() / 1e9 <= 5.0

    run(scenario, max_streams=1)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"ping": sync_pb2.Ping(nonce=1)}, "hello: must be the first message"),
        ({"hello": sync_pb2.Hello(instance="i")}, "hello.sidecar"),
        ({"hello": sync_pb2.Hello(sidecar="x" * 254)}, "hello.sidecar"),
        ({"hello": sync_pb2.Hello(sidecar="a\nb")}, "hello.sidecar"),
        ({"hello": sync_pb2.Hello(sidecar="a", cursors=[sync_pb2.Cursor(tenant="t")])}, "hello.cursors[0].lane"),
        (
            {"hello": sync_pb2.Hello(sidecar="a", cursors=2 * [sync_pb2.Cursor(tenant="t", lane="LANE_BULK")])},
            "hello.cursors[1]",
        ),
    ],
)
def test_a_bad_hello_is_refused_naming_the_field(run: Any, message: dict[str, Any], field: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.sidecar() as sidecar:
            await sidecar.send(**message)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await sidecar.step()
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert (raised.value.details() or "").startswith(field)

    run(scenario)


def test_many_fresh_sidecars_share_one_snapshot(run: Any, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for start in range(0, 3_000, 1_000):
            await rig.store.commit("acme", devices(1_000, start=start))

        async def follow(name: str) -> None:
            async with rig.sidecar() as sidecar:
                await sidecar.hello(name)
                await sidecar.at(("acme", URGENT, 0), ("acme", BULK, 3))

        await asyncio.gather(*(follow(f"pod-{n}") for n in range(12)))
        names = sorted(path.name for path in (tmp_path / "cp.db.snapshots").glob("*.snapshot"))
        assert [name.rsplit(".", 2)[0] for name in names] == ["acme.1.1.0", "acme.2.1.3"]

    run(scenario)


def test_bad_input_leaves_the_stream_of_others_alone(run: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.store.commit("acme", [grant(1)])
        async with rig.sidecar() as sidecar:
            await sidecar.hello()
            await sidecar.at(("acme", URGENT, 1), ("acme", BULK, 0))
            raw: Any = rig.channel.stream_stream("/sidestep.v1.SyncService/Sync")()
            await raw.write(b"\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError):
                await raw.read()
            # Nonsense within the protocol is ignored.
            await sidecar.send()
            await sidecar.send(ack=sync_pb2.Ack(cursor=sync_pb2.Cursor(tenant="acme", lane="LANE_BULK"), chunk=77))
            await sidecar.send(refusal=sync_pb2.Refusal(cursor=sync_pb2.Cursor(tenant="nobody")))
            await rig.store.commit("acme", [grant(2)])
            await sidecar.at(("acme", URGENT, 2))

    run(scenario)
