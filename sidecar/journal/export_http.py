"""OTLP over HTTP with binary protobuf (OTLP specification 1.x, "OTLP/HTTP").

Only an answer 200 of type application/x-protobuf that is an Export...ServiceResponse counts as accepted: a proxy's friendly
page does not. Redirects are not followed, and proxies of the environment are not used: see docs/operations.md.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
import time
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import version

import httpx
from google.protobuf.message import DecodeError

from engine.errors import InvalidInputError
from sidecar.journal.export import (
    MAX_ANSWER_BYTES,
    ExporterError,
    ExportResult,
    Verdict,
    bounded_wait_s,
    printable,
    read_answer,
)
from sidecar.otel import Otlp, tls_context
from sidecar.retryinfo import status_message

_PROTOBUF = "application/x-protobuf"
_OK = 200
_TOO_LARGE = 413
# 408 and 425 by the HTTP specification, the others by that of OTLP.
_RETRYING = frozenset({408, 425, 429, 502, 503, 504})
# Other 4xx and 5xx: the collector looked at the data and does not want it. Of these it does not tell, but that the request came
# to the wrong place, in the wrong form or from the wrong one.
_DENYING = frozenset({401, 402, 403, 404, 405, 406, 407, 410, 411, 415, 421, 426, 431, 451, 495, 496, 501, 505, 511})


class HttpExporter:
    """One connection, kept alive, to one collector. The contract is `Exporter`'s."""

    def __init__(self, otlp: Otlp) -> None:
        """Raises ExporterError when a TLS file cannot be used."""
        try:
            # Without TLS there is nothing to verify, and no roots to load.
            verify: ssl.SSLContext | bool = False if otlp.insecure else tls_context(otlp)
        except InvalidInputError as error:
            raise ExporterError(str(error)) from None
        for library in ("httpx", "httpcore"):  # they log every request, with its URL, whose query may be a credential
            logging.getLogger(library).setLevel(logging.WARNING)
        headers = {"user-agent": f"sidestep/{version('sidestep')}"} | dict(otlp.headers)
        headers |= {"content-type": _PROTOBUF, "accept-encoding": "identity"}
        if otlp.gzip:
            headers["content-encoding"] = "gzip"
        self._client = httpx.AsyncClient(
            headers=headers,
            # None are kept: they would pile up, here and in every request, for as long as the agent lives.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            verify=verify,
            trust_env=False,
            timeout=None,  # noqa: S113 - bounded as a whole, below
            limits=httpx.Limits(max_connections=2, max_keepalive_connections=1),
        )
        self._url = otlp.endpoint
        self._gzip = otlp.gzip
        self._timeout_s = otlp.timeout_s

    async def export(self, request: bytes, timeout_s: float | None = None) -> ExportResult:
        """Sends one encoded request. Does not raise for what the collector or the network does."""
        timeout_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        if self._gzip:
            request = await asyncio.to_thread(gzip.compress, request, 1)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream("POST", self._url, content=request) as response,
            ):
                return _result(response, await _body(response))
        except TimeoutError:
            return ExportResult(Verdict.RETRY, detail=f"no answer within {timeout_s:g} s")
        except (httpx.HTTPError, OSError) as error:  # OSError: TLS alerts that come late are not wrapped
            return ExportResult(Verdict.RETRY, detail=f"{type(error).__name__}: {printable(str(error))}")

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.aclose()


async def _body(response: httpx.Response) -> bytes | None:
    """The body as it came over the wire; None if it is longer than an OTLP answer can be."""
    body = b""
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            return None
    return body


def _result(response: httpx.Response, body: bytes | None) -> ExportResult:
    status = response.status_code
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if status == _OK:
        if kind != _PROTOBUF:
            return _no_otlp(f"of type {printable(kind) or '(none)'}")
        if body is None:
            return _no_otlp(f"of over {MAX_ANSWER_BYTES} bytes")
        return read_answer(body)
    detail = f"HTTP {status}: {_words(kind, body or b'') or response.reason_phrase}"
    return ExportResult(_verdict(status), retry_after_s=_retry_after_s(response), detail=detail)


def _no_otlp(what: str) -> ExportResult:
    return ExportResult(Verdict.DENIED, detail=f"an answer {what} is not that of an OTLP receiver")


def _verdict(status: int) -> Verdict:
    if status in _RETRYING:
        return Verdict.RETRY
    if status == _TOO_LARGE:
        return Verdict.TOO_MUCH
    if status < 400 or status in _DENYING:  # redirects, and successes that are no OTLP answer
        return Verdict.DENIED
    return Verdict.REFUSED


def _words(kind: str, body: bytes) -> str:
    """The message of an error's body: google.rpc.Status, or plain text."""
    if kind == _PROTOBUF:
        try:
            return printable(status_message(body))
        except DecodeError:
            return ""
    return printable(body.decode(errors="replace")) if kind in ("text/plain", "application/json") else ""


def _retry_after_s(response: httpx.Response) -> float | None:
    """Retry-After (RFC 9110, 10.2.3): seconds, or a date, which is read against the server's own clock."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return bounded_wait_s(float(text))
    at = _date(text)
    if at is None:
        return None
    now = _date(response.headers.get("date", ""))
    return bounded_wait_s(at - (time.time() if now is None else now))


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
