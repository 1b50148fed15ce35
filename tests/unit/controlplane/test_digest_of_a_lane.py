"""After any sequence of writes: the digest is that of the records, and snapshot-then-deltas equals the state."""

from __future__ import annotations

import asyncio
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st
from sidestep.v1 import sync_pb2

from controlplane.store import Head, Store, Write
from engine.digest import Digest
from engine.names import Lane

WRITES = st.builds(
    Write,
    collection=st.sampled_from([1, 2, 63, 64, 65, 127]),
    id=st.sampled_from(["a", "b", "é", "~x", "Z"]),
    value=st.none() | st.binary(max_size=8),
)
COMMITS = st.lists(st.lists(WRITES, max_size=6), max_size=8)

Records = dict[tuple[int, str], bytes]


async def read(store: Store, lane: Lane) -> tuple[Head, Records]:
    async with store.read_lane("acme", lane) as (head, batches):
        return head, {(c, i): v async for batch in batches for c, i, v in batch}


def digest_of(key: bytes, records: Records) -> bytes:
    digest = Digest(key)
    for (collection, record_id), value in records.items():
        digest.add(collection, record_id, value)
    return digest.value()


@settings(max_examples=25, deadline=None)
@given(before=COMMITS, after=COMMITS)
def test_digest_and_deltas_agree_with_the_records(before: list[list[Write]], after: list[list[Write]]) -> None:
    async def scenario(url: str) -> None:
        store = await Store.open(url)
        try:
            expected: Records = {}
            await store.commit("acme", [])
            for writes in before:
                await store.commit("acme", writes)
            replicas = {lane: await read(store, lane) for lane in Lane}
            for writes in after:
                await store.commit("acme", writes)
            for write in [write for writes in before + after for write in writes]:
                if write.value is None:
                    expected.pop((write.collection, write.id), None)
                else:
                    expected[(write.collection, write.id)] = write.value
            for lane in Lane:
                head, records = await read(store, lane)
                assert records == {key: value for key, value in expected.items() if (key[0] > 63) == (lane == 2)}
                assert digest_of(head.digest_key, records) == head.digest
                snapshot, replica = replicas[lane]
                digest = snapshot.digest
                for entry in await store.changes("acme", lane, snapshot.revision):
                    delta = sync_pb2.Delta.FromString(entry.delta)
                    assert delta.previous_digest == digest
                    digest = delta.digest
                    for change in delta.changes:
                        if change.WhichOneof("change") == "deleted":
                            del replica[(int(change.collection), change.id)]
                        else:
                            replica[(int(change.collection), change.id)] = change.value
                    assert digest_of(head.digest_key, replica) == digest
                assert (replica, digest) == (records, head.digest)
        finally:
            await store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(f"sqlite+aiosqlite:///{folder}/cp.db"))
