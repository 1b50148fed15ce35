"""The outbox of a pod's store: each tenant's rows by themselves, and room for everybody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest

from sidecar.local.outbox import Item, Outbox, OutboxFullError


@pytest.fixture
def env(tmp_path: Path) -> Iterator[lmdb.Environment]:
    env = lmdb.open(str(tmp_path / "env"), max_dbs=1, map_size=8 << 20, sync=False)
    yield env
    env.close()


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def put(env: lmdb.Environment, outbox: Outbox, tenant: str, *numbers: int) -> None:
    with env.begin(write=True) as txn:
        for number in numbers:
            outbox.put(txn, tenant, key(number), b"%d" % number)


def test_each_tenant_is_paged_through_by_itself(env: lmdb.Environment) -> None:
    outbox = Outbox(env.open_db(b"unsent"), 1000)
    put(env, outbox, "acme", 1, 2, 3)
    put(env, outbox, "ac", 9, 7)
    put(env, outbox, "acme", 2)
    with env.begin(write=True) as txn:
        assert outbox.tenants(txn) == ["ac", "acme"]
        assert outbox.page(txn, "ac", 10) == [Item(key(7), b"7"), Item(key(9), b"9")]
        assert outbox.page(txn, "acme", 2) == [Item(key(1), b"1"), Item(key(2), b"2")]
        assert outbox.page(txn, "other", 2) == []
        outbox.settle(txn, "ac", [key(7), key(9), key(7)])
        assert outbox.tenants(txn) == ["acme"]
        outbox.settle(txn, "acme", [key(2)])
        assert [item.key for item in outbox.page(txn, "acme", 9)] == [key(1), key(3)]
        outbox.settle(txn, "acme", [key(1), key(3)])
        assert outbox.tenants(txn) == []
        assert txn.stat(env.open_db(b"unsent", txn=txn))["entries"] == 0


def test_one_tenant_leaves_room_for_the_others(env: lmdb.Environment) -> None:
    outbox = Outbox(env.open_db(b"unsent"), 100)
    filled = {}
    for tenant in ("gone", "acme", "other"):
        filled[tenant] = 0
        with suppress(OutboxFullError):
            for number in range(200):
                put(env, outbox, tenant, number)
                filled[tenant] += 1
        with pytest.raises(OutboxFullError, match=tenant):
            put(env, outbox, tenant, 999)
    assert 40 <= filled["gone"] <= 50
    assert filled["acme"] >= 20
    assert filled["other"] >= 10
    with env.begin(write=True) as txn:
        outbox.settle(txn, "acme", [key(number) for number in range(100)])
    put(env, outbox, "other", 300, 301, 302)
