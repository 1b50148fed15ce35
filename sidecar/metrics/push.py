"""Sends the metrics to the collector: all of them every time, so that a push that fails costs nothing but time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from importlib.metadata import version

from sidecar.config import Config, resource_attributes
from sidecar.journal.export import Exporter, ExporterError, ExportResult, Verdict, open_exporter
from sidecar.metrics.collect import collect
from sidecar.metrics.otlp import encode
from sidecar.page import AgentWord, Page

_log = logging.getLogger(__name__)


class MetricsPush:
    """Pushes one page to one exporter. Counts what it does in the agent's slot, as metrics of their own."""

    def __init__(self, page: Page, exporter: Exporter, resource: Mapping[str, str], interval_s: float) -> None:
        """`resource`: attributes of what is measured, those of the spans."""
        self._page = page
        self._exporter = exporter
        self._resource = resource
        self._interval_s = interval_s
        self._failing = False

    async def run(self) -> None:
        """Pushes every interval, for ever. A push that fails is not repeated: the next one says more."""
        due_at = time.monotonic() + self._interval_s
        while True:
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            await self.push(self._interval_s)
            # After a pause of the machine, or a slow push, times that have passed are left out.
            due_at = max(due_at + self._interval_s, time.monotonic())

    async def push(self, timeout_s: float) -> bool:
        """One push, within `timeout_s`. Whether the collector took all of it; failures are counted and logged once."""
        request = encode(
            collect(self._page),
            self._resource,
            version("sidestep"),
            begun_ns=self._page.created_ns,
            at_ns=time.time_ns(),
        )
        result = await self._exporter.export(request, timeout_s)
        problem = _problem(result)
        self._page.agent.add(AgentWord.METRIC_EXPORT_FAILURES if problem else AgentWord.METRIC_EXPORTS)
        if problem and not self._failing:
            _log.warning("metrics: cannot be sent, will try on: %s", problem)
        elif self._failing and not problem:
            _log.info("metrics: sent again")
        self._failing = bool(problem)
        return not problem

    async def close(self) -> None:
        """Closes the exporter."""
        await self._exporter.close()


def open_push(config: Config, page: Page) -> MetricsPush | None:
    """As the settings say; None: metrics are not sent, or cannot be, which is logged and stops nothing else."""
    if config.metrics_exporter == "none":
        return None
    try:
        exporter = open_exporter(config.otlp_metrics, "metrics")
    except ExporterError as error:
        _log.error("metrics: not sent: %s", error)
        return None
    return MetricsPush(page, exporter, resource_attributes(config), config.metrics_interval_s)


def _problem(result: ExportResult) -> str:
    """What went wrong; empty: nothing."""
    if result.verdict is not Verdict.ACCEPTED:
        return f"{result.verdict.value}: {result.detail}"
    return f"{result.rejected} data points were rejected: {result.detail}" if result.rejected else ""
