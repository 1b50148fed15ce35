"""What one tenant may import: how many at a time, and how many records in the long run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from controlplane.errors import OverloadedError, StoreError
from controlplane.metrics.catalogue import IMPORTS
from controlplane.metrics.tally import Tally
from engine.errors import SidestepError

MAX_IMPORTS: Final = 4
"""Imports under way in one process, of all tenants together."""
_RETRY_S: Final = 5.0
_MAX_RETRY_S: Final = 600.0
# Beyond this many tenants, those that have everything are forgotten.
_MAX_TENANTS: Final = 10_000


class ImportQuotas:
    """Admits imports and counts their records. One instance serves a process.

    A tenant's stock of records fills up with `records_per_minute` and runs out with what it imports. An import begins only if
    some are left, and is then let through whole, however large: it leaves a debt that has to be waited off before the next.
    So the rate holds in the long run, and no import is too large to be made.
    """

    def __init__(self, *, per_tenant: int, records_per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_tenant = per_tenant
        self._per_s = records_per_minute / 60
        self._most = float(records_per_minute)
        self._now = now
        self._open = 0
        self._running: dict[str, int] = {}
        # What is left, and as of when. A tenant that is not here has everything.
        self._left: dict[str, tuple[float, float]] = {}
        self.ended = Tally.of(IMPORTS)
        self.records = 0

    @property
    def running(self) -> int:
        """Imports under way."""
        return self._open

    @contextmanager
    def run(self) -> Iterator[ImportRun]:
        """For the time of one import. Raises OverloadedError if too many are under way in this process."""
        if self._open >= MAX_IMPORTS:
            raise self._refused(f"{MAX_IMPORTS} imports are running", _RETRY_S)
        self._open += 1
        run = ImportRun(self)
        result = "failed"
        try:
            yield run
            result = "done"
        except StoreError:
            raise
        except SidestepError:
            result = "refused"
            raise
        finally:
            self._open -= 1
            self.ended.add(result)
            if run.tenant:
                self._running[run.tenant] -= 1
                if not self._running[run.tenant]:
                    del self._running[run.tenant]

    def begin(self, tenant: str) -> None:
        """See ImportRun.begin."""
        if self._running.get(tenant, 0) >= self._per_tenant:
            raise OverloadedError(
                f"tenants/{tenant}: quota of imports at a time ({self._per_tenant}) used up", _RETRY_S
            )
        left = self._left_of(tenant)
        if left <= 0:
            wait_s = min(_MAX_RETRY_S, max(1.0, (1 - left) / self._per_s))
            raise OverloadedError(
                f"tenants/{tenant}: quota of imported records per minute ({self._most:.0f}) used up", wait_s
            )
        self._running[tenant] = self._running.get(tenant, 0) + 1

    def take(self, tenant: str, records: int) -> None:
        """See ImportRun.take."""
        self.records += records
        left = self._left_of(tenant) - records
        if tenant not in self._left and len(self._left) >= _MAX_TENANTS:
            for name in [name for name in self._left if self._left_of(name) >= self._most]:
                del self._left[name]
        self._left[tenant] = (left, self._now())

    def _left_of(self, tenant: str) -> float:
        left, at = self._left.get(tenant, (self._most, 0.0))
        return min(self._most, left + (self._now() - at) * self._per_s)

    def _refused(self, problem: str, retry_after_s: float) -> OverloadedError:
        self.ended.add("refused")
        return OverloadedError(problem, retry_after_s)


class ImportRun:
    """One import. `tenant` is empty until it has begun."""

    def __init__(self, quotas: ImportQuotas) -> None:
        self._quotas = quotas
        self.tenant = ""

    def begin(self, tenant: str) -> None:
        """Says whose it is. Raises OverloadedError naming the tenant's quota that is used up, and when to come back."""
        self._quotas.begin(tenant)
        self.tenant = tenant

    def take(self, records: int) -> None:
        """Counts records that it brought."""
        self._quotas.take(self.tenant, records)
