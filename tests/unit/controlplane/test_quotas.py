"""What a tenant may import."""

from __future__ import annotations

import pytest

from controlplane.api.quotas import MAX_IMPORTS, ImportQuotas
from controlplane.errors import OverloadedError, ShrinkError, StoreError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_tenant_has_so_many_imports_at_a_time_and_others_have_their_own() -> None:
    quotas = ImportQuotas(per_tenant=1, records_per_minute=1_000)
    with quotas.run() as first, quotas.run() as second, quotas.run() as third:
        first.begin("acme")
        with pytest.raises(OverloadedError, match=r"tenants/acme: quota of imports at a time \(1\)") as raised:
            second.begin("acme")
        assert raised.value.retry_after_s > 0
        third.begin("globex")
        assert quotas.running == 3
    with quotas.run() as again:
        again.begin("acme")


def test_an_import_larger_than_the_quota_goes_through_and_the_next_waits_off_the_debt() -> None:
    clock = Clock()
    quotas = ImportQuotas(per_tenant=2, records_per_minute=600, now=clock)
    with quotas.run() as large:
        large.begin("acme")
        large.take(1_200)
        large.take(600)
    with quotas.run() as other:
        other.begin("globex")
    with (
        pytest.raises(OverloadedError, match=r"tenants/acme: quota of imported records per minute \(600\)") as raised,
        quotas.run() as early,
    ):
        early.begin("acme")
    # 1,200 in debt, at ten a second.
    assert raised.value.retry_after_s == pytest.approx(120.1, abs=0.2)
    clock.now += raised.value.retry_after_s + 0.1
    with quotas.run() as late:
        late.begin("acme")
    assert quotas.records == 1_800


def test_unused_quota_does_not_add_up() -> None:
    clock = Clock()
    quotas = ImportQuotas(per_tenant=2, records_per_minute=60, now=clock)
    clock.now += 100_000
    with quotas.run() as one:
        one.begin("acme")
        one.take(61)
    with pytest.raises(OverloadedError), quotas.run() as two:
        two.begin("acme")


def test_imports_of_a_process_are_bounded_and_ends_are_counted() -> None:
    quotas = ImportQuotas(per_tenant=4, records_per_minute=60)
    with pytest.raises(ShrinkError), quotas.run():
        raise ShrinkError("too much")
    with pytest.raises(StoreError), quotas.run():
        raise StoreError("gone")
    open_ = [quotas.run() for _ in range(MAX_IMPORTS)]
    for each in open_:
        each.__enter__()
    with pytest.raises(OverloadedError), quotas.run():
        raise AssertionError("one too many")
    for each in open_:
        each.__exit__(None, None, None)
    assert (quotas.ended["refused"], quotas.ended["failed"], quotas.ended["done"]) == (2, 1, MAX_IMPORTS)
    assert quotas.running == 0
