"""What OTLP over HTTP adds: only an OTLP answer counts as one, whatever a proxy sends instead."""

from __future__ import annotations

import gzip
import logging
import time
from email.utils import formatdate

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from sidecar.journal.export import MAX_ANSWER_BYTES, MAX_DETAIL, ExportResult, Verdict
from tests.fakes.otlp_http import PROTOBUF, Answer, OtlpHttpReceiver
from tests.unit.journal.test_export import in_a_loop, opened, sent, settings, spans

OTLP = {"content-type": PROTOBUF}
NOW = formatdate(1_800_000_000, usegmt=True)
IN_A_MINUTE = formatdate(1_800_000_060, usegmt=True)


async def answered(answer: Answer, timeout_s: float = 30) -> ExportResult:
    """What comes of one attempt that is answered so."""
    with OtlpHttpReceiver() as receiver:
        receiver.answer = answer
        result = await sent(settings(receiver, timeout_s=timeout_s))
        assert receiver.paths == ["/v1/traces"]
        return result


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>Please log in</html>", {"content-type": "text/html"}),
        Answer(200, b"", {"content-type": "text/html"}),
        Answer(200, b"<html>Please log in</html>", OTLP),
        Answer(200, b"{}", {"content-type": "application/json"}),
        Answer(200, b""),
        Answer(200, gzip.compress(b"", mtime=0), OTLP | {"content-encoding": "gzip"}),
        Answer(202, b"", OTLP),
        Answer(204),
    ],
    ids=str,
)
@in_a_loop
async def test_a_success_that_is_no_otlp_answer_is_none(answer: Answer) -> None:
    result = await answered(answer)
    assert result.verdict is Verdict.DENIED
    assert result.detail


@in_a_loop
async def test_parameters_of_the_content_type_do_not_matter() -> None:
    result = await answered(Answer(200, b"", {"content-type": "Application/X-Protobuf; proto=x"}))
    assert result.verdict is Verdict.ACCEPTED


@in_a_loop
async def test_a_partial_success_of_a_bare_answer_is_counted() -> None:
    partial = ExportTraceServiceResponse()
    partial.partial_success.rejected_spans = 2
    partial.partial_success.error_message = "no\nroom" + "!" * 1000
    result = await answered(Answer(200, partial.SerializeToString(), OTLP))
    assert (result.verdict, result.rejected) == (Verdict.ACCEPTED, 2)
    assert result.detail.startswith("no room!")
    assert len(result.detail) <= MAX_DETAIL


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(status, Verdict.RETRY) for status in (408, 425, 429, 502, 503, 504)]
    + [(status, Verdict.DENIED) for status in (300, 401, 403, 404, 405, 407, 411, 415, 421, 431, 501, 511)]
    + [(status, Verdict.REFUSED) for status in (400, 409, 422, 500, 599)]
    + [(413, Verdict.TOO_MUCH)],
)
@in_a_loop
async def test_a_status_says_whether_data_or_connection_is_at_fault(status: int, verdict: Verdict) -> None:
    result = await answered(Answer(status, b"over quota\x1b[31m", {"content-type": "text/plain"}))
    assert result.verdict is verdict
    assert result.detail == f"HTTP {status}: over quota [31m"


@in_a_loop
async def test_cookies_are_not_kept() -> None:
    with OtlpHttpReceiver() as receiver:
        receiver.answer = Answer(200, b"", OTLP | {"set-cookie": "node=3; Max-Age=1000"})
        async with opened(settings(receiver)) as exporter:
            for _ in range(2):
                await exporter.export(spans(1))
        assert len(receiver.metadata) == 2
        assert not any("cookie" in headers for headers in receiver.metadata)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@in_a_loop
async def test_redirects_are_not_followed(status: int) -> None:
    with OtlpHttpReceiver() as elsewhere:
        result = await answered(Answer(status, b"", {"location": elsewhere.url()}))
        assert result.verdict is Verdict.DENIED
        assert not elsewhere.calls


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "17"}, 17),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "9" * 500}, 300),
        ({"retry-after": IN_A_MINUTE, "date": NOW}, 60),
        ({"retry-after": NOW, "date": IN_A_MINUTE}, 0),
        ({"retry-after": formatdate(time.time() + 3600, usegmt=True)}, 300),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Fri, 99 Jan 2027 00:00:00 GMT"}, None),
        ({}, None),
    ],
)
@in_a_loop
async def test_retry_after_is_read_as_seconds_and_as_a_date_of_the_servers_clock(
    headers: dict[str, str], wait_s: float | None
) -> None:
    result = await answered(Answer(503, b"", headers))
    assert (result.verdict, result.retry_after_s) == (Verdict.RETRY, wait_s)


@in_a_loop
async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    for status in (200, 400):
        # More is announced than ever comes, so whoever waited for it would see the timeout.
        endless = Answer(status, bytes(4 * MAX_ANSWER_BYTES), OTLP | {"content-length": str(1 << 40)})
        result = await answered(endless, timeout_s=60)
        assert result.verdict is (Verdict.DENIED if status == 200 else Verdict.REFUSED)


@in_a_loop
async def test_an_answer_that_is_cut_off_is_tried_again() -> None:
    partial = ExportTraceServiceResponse()
    partial.partial_success.rejected_spans = 2
    body = partial.SerializeToString()
    for cut in (0, len(body) - 1):
        result = await answered(Answer(200, body, OTLP, cut=cut))
        assert result.verdict is Verdict.RETRY
        assert "RemoteProtocolError" in result.detail


@in_a_loop
async def test_a_bare_status_is_told_by_its_name() -> None:
    assert (await answered(Answer(503, b"\xff\xff\xff", OTLP))).detail == "HTTP 503: Service Unavailable"
    assert (await answered(Answer(404, b"<html>", {"content-type": "text/html"}))).detail == "HTTP 404: Not Found"


@in_a_loop
async def test_one_connection_is_kept_for_all_batches() -> None:
    with OtlpHttpReceiver() as receiver:
        async with opened(settings(receiver, gzip=True)) as exporter:
            for _ in range(5):
                assert (await exporter.export(spans(3))).verdict is Verdict.ACCEPTED
        assert receiver.connections == 1
        assert len(receiver.spans) == 15
        assert {headers["content-type"] for headers in receiver.metadata} == {PROTOBUF}
        assert {headers["content-encoding"] for headers in receiver.metadata} == {"gzip"}
        assert {headers["accept-encoding"] for headers in receiver.metadata} == {"identity"}


@in_a_loop
async def test_the_path_is_used_as_it_is_and_logged_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with OtlpHttpReceiver() as receiver:
        otlp = settings(receiver)
        result = await sent(otlp._replace(endpoint=otlp.endpoint.replace("/v1/traces", "/in/traces/?key=s3cret")))
        assert receiver.paths == ["/in/traces/?key=s3cret"]
        assert result.verdict is Verdict.DENIED
        assert result.detail == "HTTP 404: 404 page not found"
        assert "s3cret" not in caplog.text
