"""W3C Trace Context on the way to the sidecar, so that its span joins the caller's trace."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TypeAlias

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]{0,200})?")
_MODULE = "opentelemetry.trace.propagation.tracecontext"


def trace_metadata(traceparent: str | None) -> Metadata:
    """The call's trace headers: the given `traceparent`, else OpenTelemetry's current context if its API is installed.

    A malformed one is left out, as the specification asks: it usually comes from a header somebody else wrote.
    """
    if traceparent is not None:
        return (("traceparent", traceparent),) if _TRACEPARENT.fullmatch(traceparent) else ()
    carrier: dict[str, str] = {}
    _inject(carrier)
    return tuple(carrier.items())


def _find_inject() -> Callable[[dict[str, str]], None]:
    # An optional companion, not a dependency: used where the service already has it.
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.trace") is None:
        return lambda carrier: None
    inject: Callable[[dict[str, str]], None] = import_module(_MODULE).TraceContextTextMapPropagator().inject
    return inject


_inject = _find_inject()
