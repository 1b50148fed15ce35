from __future__ import annotations

import pytest

from sidecar.front.traceparent import kept_traceparent, trace_fields

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "traceparent", [f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01-later-additions"]
)
def test_caller_s_ids_are_told(traceparent: str) -> None:
    assert trace_fields(traceparent) == {"trace_id": TRACE, "span_id": SPAN}
    assert kept_traceparent(traceparent) == traceparent[:55]


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "alice",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_nothing_else_is(traceparent: str) -> None:
    assert trace_fields(traceparent) == {}
    assert kept_traceparent(traceparent) == ""
