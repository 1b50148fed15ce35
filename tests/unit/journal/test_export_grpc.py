"""What OTLP over gRPC adds: statuses HTTP has no word for, and what does not speak gRPC."""

from __future__ import annotations

import struct

import grpc
import pytest

from sidecar.journal.export import MAX_ANSWER_BYTES, Verdict
from sidecar.otel import Otlp
from tests.fakes.http2 import page_server
from tests.fakes.otlp import OtlpReceiver, Refusal, always
from tests.fakes.otlp_http import OtlpHttpReceiver
from tests.unit.journal.test_export import in_a_loop, sent, settings

HTML = b"<html>Please log in</html>"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (grpc.StatusCode.CANCELLED, Verdict.RETRY),
        (grpc.StatusCode.ABORTED, Verdict.RETRY),
        (grpc.StatusCode.OUT_OF_RANGE, Verdict.RETRY),
        (grpc.StatusCode.DATA_LOSS, Verdict.RETRY),
        (grpc.StatusCode.ALREADY_EXISTS, Verdict.REFUSED),
        (grpc.StatusCode.FAILED_PRECONDITION, Verdict.REFUSED),
        (grpc.StatusCode.NOT_FOUND, Verdict.DENIED),
        # As the specification has it: without RetryInfo no recovery is in sight, so less may be what is wanted.
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Verdict.TOO_MUCH),
    ],
)
@in_a_loop
async def test_codes_are_read_as_the_specification_has_them(code: grpc.StatusCode, verdict: Verdict) -> None:
    with OtlpReceiver() as receiver:
        receiver.fail = always(code)
        result = await sent(settings(receiver))
        assert (result.verdict, result.retry_after_s) == (verdict, None)
        assert result.detail == f"{code.name}: told to"


@in_a_loop
async def test_a_server_that_asks_for_a_wait_is_asked_again() -> None:
    with OtlpReceiver() as receiver:
        for code, verdict in (
            (grpc.StatusCode.INTERNAL, Verdict.RETRY),
            (grpc.StatusCode.UNAUTHENTICATED, Verdict.DENIED),
        ):
            receiver.fail = always(code, retry_after_s=0.25)
            result = await sent(settings(receiver))
            assert (result.verdict, result.retry_after_s) == (verdict, 0.25)


@in_a_loop
async def test_a_message_fit_for_the_log_is_made_of_any() -> None:
    def fail(request: object) -> None:
        raise Refusal(grpc.StatusCode.UNAVAILABLE, "a\nb" + "c" * 1000)

    with OtlpReceiver() as receiver:
        receiver.fail = fail
        detail = (await sent(settings(receiver))).detail
        assert detail.startswith("UNAVAILABLE: a bc")
        assert len(detail) < 400


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (302, Verdict.DENIED),
        (401, Verdict.DENIED),
        (403, Verdict.DENIED),
        (404, Verdict.DENIED),
        (407, Verdict.DENIED),
        (413, Verdict.TOO_MUCH),
        (415, Verdict.DENIED),
        (429, Verdict.RETRY),
        (500, Verdict.RETRY),
        (503, Verdict.RETRY),
        # A page with status 200: there is no telling it from a stream that broke.
        (200, Verdict.RETRY),
    ],
)
@in_a_loop
async def test_a_proxys_page_says_nothing_about_the_data(status: int, verdict: Verdict) -> None:
    async with page_server(status, HTML) as address:
        result = await sent(Otlp(address, timeout_s=30))
        assert result.verdict is verdict
        assert result.detail


@in_a_loop
async def test_only_an_otlp_answer_counts_as_accepted() -> None:
    ended = (("grpc-status", "0"),)
    for message, verdict in ((b"", Verdict.ACCEPTED), (HTML, Verdict.DENIED), (bytes(70_000), Verdict.DENIED)):
        assert len(message) < MAX_ANSWER_BYTES or verdict is Verdict.DENIED
        body = b"\0" + struct.pack(">I", len(message)) + message[:16_000]
        async with page_server(200, body, "application/grpc", ended) as address:
            assert (await sent(Otlp(address, timeout_s=30))).verdict is verdict


@in_a_loop
async def test_a_receiver_of_another_protocol_is_retried() -> None:
    with OtlpHttpReceiver() as receiver:
        assert (await sent(Otlp(receiver.endpoint, timeout_s=30))).verdict is Verdict.RETRY
        assert not receiver.spans
