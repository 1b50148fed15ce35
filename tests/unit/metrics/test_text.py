"""Which format a client gets."""

from __future__ import annotations

import urllib.request

import pytest

from sidecar.health import HealthServer, Probe
from sidecar.metrics.text import Format, negotiate

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format.PROMETHEUS),
        ("*/*", Format.PROMETHEUS),
        ("text/html,*/*;q=0.8", Format.PROMETHEUS),
        ("text/plain;version=0.0.4", Format.PROMETHEUS),
        (PROMETHEUS_3, Format.OPENMETRICS),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("APPLICATION/OpenMetrics-Text; Version=1.0.0", Format.OPENMETRICS),
        ("text/plain;q=0.5, application/openmetrics-text;version=1.0.0;q=0.4", Format.PROMETHEUS),
        ("application/openmetrics-text;version=1.0.0;q=0", Format.PROMETHEUS),
        ("application/openmetrics-text;version=9.0.0", Format.PROMETHEUS),
        ("application/openmetrics-text;version=9.0.0, application/openmetrics-text;version=0.0.1", Format.OPENMETRICS),
        (";;q=,,=;application/openmetrics-text;q=x", Format.PROMETHEUS),
        ("application/openmetrics-text;q=nan", Format.PROMETHEUS),
    ],
)
def test_a_client_gets_openmetrics_if_it_prefers_it(accept: str, form: Format) -> None:
    assert negotiate(accept) is form


def test_the_answer_says_which_format_it_is() -> None:
    def metrics(accept: str) -> tuple[str, str]:
        form = negotiate(accept)
        return form.value, "# EOF\n"

    server = HealthServer("127.0.0.1", 0, {"/healthz": lambda: Probe(True, {})}, metrics)
    try:
        found = {}
        for accept in ("*/*", PROMETHEUS_3):
            request = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": accept})
            with urllib.request.urlopen(request, timeout=10) as answer:
                found[accept] = answer.headers["Content-Type"]
    finally:
        server.close()
    assert found == {
        "*/*": "text/plain; version=0.0.4; charset=utf-8",
        PROMETHEUS_3: "application/openmetrics-text; version=1.0.0; charset=utf-8",
    }
