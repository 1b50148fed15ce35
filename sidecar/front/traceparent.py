"""The caller's place in its trace (W3C Trace Context, `traceparent`)."""

from __future__ import annotations

import re

_FORM = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


# Version, trace id, parent id and flags, with what is between them. Later versions may add to it.
_PLAIN_LENGTH = 55


def trace_fields(traceparent: str) -> dict[str, str]:
    """The caller's `trace_id` and `span_id` in hexadecimal, for a log record's `extra`; nothing if there is no valid
    traceparent, so that no other text of the caller's gets into a log."""
    match = _valid(traceparent)
    return {} if match is None else {"trace_id": match[2], "span_id": match[3]}


def kept_traceparent(traceparent: str) -> str:
    """A traceparent as it is recorded: the fields every version has; empty if it is not valid, so that no other text of the
    caller's gets into a record."""
    return traceparent[:_PLAIN_LENGTH] if traceparent and _valid(traceparent) is not None else ""


def _valid(traceparent: str) -> re.Match[str] | None:
    match = _FORM.fullmatch(traceparent) if traceparent else None
    if match is None or (match[1] == "00" and match[4]) or not int(match[2], 16) or not int(match[3], 16):
        return None
    return match
