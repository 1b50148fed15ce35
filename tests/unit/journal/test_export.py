"""What every exporter promises, against real receivers: one suite for gRPC and HTTP, in plain text and with TLS."""

from __future__ import annotations

import asyncio
import functools
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sidecar.journal.export import MAX_WAIT_S, Exporter, ExporterError, ExportResult, Verdict, open_exporter
from sidecar.otel import Otlp, Signal
from tests.fakes.certificates import Authority
from tests.fakes.otlp import OtlpReceiver, Receiver, Tls, always
from tests.fakes.otlp_http import OtlpHttpReceiver

Protocol = Literal["grpc", "http/protobuf"]


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@pytest.fixture(params=["grpc", "http/protobuf"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    found: Protocol = request.param
    return found


@pytest.fixture
def receiver(protocol: Protocol) -> Iterator[Receiver]:
    with listening(protocol) as receiver:
        yield receiver


def listening(protocol: Protocol, tls: Tls | None = None) -> Receiver:
    return OtlpReceiver(tls) if protocol == "grpc" else OtlpHttpReceiver(tls)


def settings(receiver: Receiver, signal: Signal = "traces", **changes: Any) -> Otlp:
    """How to reach a receiver; a generous timeout, for busy machines."""
    if isinstance(receiver, OtlpHttpReceiver):
        found = Otlp(receiver.url(signal), protocol="http/protobuf", insecure=receiver.tls is None, timeout_s=30)
    else:
        found = Otlp(receiver.endpoint, insecure=receiver.tls is None, timeout_s=30)
    return found._replace(**changes)


@asynccontextmanager
async def opened(otlp: Otlp, signal: Signal = "traces") -> AsyncIterator[Exporter]:
    exporter = open_exporter(otlp, signal)
    try:
        yield exporter
    finally:
        await exporter.close()


async def sent(otlp: Otlp, request: bytes | None = None) -> ExportResult:
    """One attempt with an exporter of its own."""
    async with opened(otlp) as exporter:
        return await exporter.export(spans(1) if request is None else request)


def spans(count: int, padding: str = "") -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(count):
        scope.spans.add(name=f"span {number}{padding}", span_id=number.to_bytes(8, "big"))
    return request.SerializeToString()


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def until_accepted(attempt: Callable[[], Awaitable[ExportResult]], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while (result := await attempt()).verdict is not Verdict.ACCEPTED:
        assert time.monotonic() < deadline, result
        await asyncio.sleep(0.02)


@in_a_loop
async def test_spans_arrive_with_the_headers_that_were_asked_for(receiver: Receiver) -> None:
    headers = (("authorization", "Bearer abc"), ("x-scope", "a b"), ("x-empty", ""))
    async with opened(settings(receiver, headers=headers)) as exporter:
        for _ in range(3):
            assert await exporter.export(spans(2)) == ExportResult(Verdict.ACCEPTED)
    assert [span.name for span in receiver.spans] == ["span 0", "span 1"] * 3
    assert {name: receiver.metadata[-1][name] for name, _ in headers} == dict(headers)
    assert receiver.metadata[-1]["user-agent"].startswith("sidestep/")


@in_a_loop
async def test_metrics_go_to_their_own_service(receiver: Receiver) -> None:
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().scope_metrics.add().metrics.add(name="sidestep.decisions")
    async with opened(settings(receiver, "metrics"), "metrics") as exporter:
        assert (await exporter.export(request.SerializeToString())).verdict is Verdict.ACCEPTED
    assert receiver.metrics == [request]
    assert not receiver.spans


@in_a_loop
async def test_with_gzip_less_goes_over_the_wire(receiver: Receiver, protocol: Protocol) -> None:
    request = spans(50, padding="x" * 1000)
    for gzip in (False, True):
        async with relay(receiver.endpoint) as (address, passed):
            otlp = settings(receiver, gzip=gzip)
            otlp = otlp._replace(endpoint=otlp.endpoint.replace(receiver.endpoint, address))
            assert (await sent(otlp, request)).verdict is Verdict.ACCEPTED
            assert sum(passed) < len(request) / 10 if gzip else sum(passed) > len(request)
    assert len(receiver.spans) == 100


@asynccontextmanager
async def relay(target: str) -> AsyncIterator[tuple[str, list[int]]]:
    """A TCP hop; counts the bytes that pass towards the target."""
    passed: list[int] = []
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: list[int]) -> None:
        try:
            while data := await reader.read(1 << 16):
                counts.append(len(data))
                writer.write(data)
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = target.split(":")
        there = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, there[1], passed), copy(there[0], writer, []), return_exceptions=True)

    server = await asyncio.start_server(lambda r, w: tasks.add(asyncio.create_task(connect(r, w))), "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", passed
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@in_a_loop
async def test_partial_success_is_counted(receiver: Receiver) -> None:
    receiver.reject = 3
    assert await sent(settings(receiver), spans(5)) == ExportResult(Verdict.ACCEPTED, rejected=3, detail="told to")


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (grpc.StatusCode.UNAVAILABLE, Verdict.RETRY),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Verdict.RETRY),
        (grpc.StatusCode.INVALID_ARGUMENT, Verdict.REFUSED),
        (grpc.StatusCode.INTERNAL, Verdict.REFUSED),
        (grpc.StatusCode.UNKNOWN, Verdict.REFUSED),
        (grpc.StatusCode.UNAUTHENTICATED, Verdict.DENIED),
        (grpc.StatusCode.PERMISSION_DENIED, Verdict.DENIED),
        (grpc.StatusCode.UNIMPLEMENTED, Verdict.DENIED),
    ],
)
@in_a_loop
async def test_an_error_says_whether_data_or_connection_is_at_fault(
    receiver: Receiver, code: grpc.StatusCode, verdict: Verdict
) -> None:
    receiver.fail = always(code)
    result = await sent(settings(receiver))
    assert result.verdict is verdict
    assert "told to" in result.detail
    assert not receiver.spans


@in_a_loop
async def test_the_wait_the_collector_asks_for_is_told_and_bounded(receiver: Receiver) -> None:
    receiver.fail = always(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=7)
    result = await sent(settings(receiver))
    assert (result.verdict, result.retry_after_s) == (Verdict.RETRY, 7)
    receiver.fail = always(grpc.StatusCode.UNAVAILABLE, retry_after_s=86_400)
    result = await sent(settings(receiver))
    assert (result.verdict, result.retry_after_s) == (Verdict.RETRY, MAX_WAIT_S)


@in_a_loop
async def test_an_answer_that_does_not_come_in_time_is_tried_again(receiver: Receiver) -> None:
    receiver.delay_s = 60
    assert (await sent(settings(receiver, timeout_s=0.2))).verdict is Verdict.RETRY
    async with opened(settings(receiver, timeout_s=60)) as exporter:
        assert (await exporter.export(spans(1), 0.2)).verdict is Verdict.RETRY
        receiver.delay_s = 0
        assert (await exporter.export(spans(1), 60)).verdict is Verdict.ACCEPTED


@in_a_loop
async def test_a_collector_that_is_away_and_comes_back_is_found(receiver: Receiver) -> None:
    receiver.stop()
    async with opened(settings(receiver)) as exporter:
        result = await exporter.export(spans(1))
        assert result.verdict is Verdict.RETRY
        assert result.detail
        receiver.start()
        await until_accepted(lambda: exporter.export(spans(1)))
    assert len(receiver.spans) == 1


@in_a_loop
async def test_a_collector_that_dies_while_it_answers_is_tried_again(receiver: Receiver) -> None:
    receiver.delay_s = 60
    async with opened(settings(receiver, timeout_s=60)) as exporter:
        attempt = asyncio.create_task(exporter.export(spans(1)))
        await until(lambda: bool(receiver.calls))
        await asyncio.to_thread(receiver.stop)
        assert (await attempt).verdict is Verdict.RETRY
        receiver.delay_s = 0
        receiver.start()
        await until_accepted(lambda: exporter.export(spans(1)))


@in_a_loop
async def test_an_attempt_that_was_cancelled_leaves_the_exporter_usable(receiver: Receiver) -> None:
    receiver.delay_s = 60
    async with opened(settings(receiver, timeout_s=60)) as exporter:
        attempt = asyncio.create_task(exporter.export(spans(1)))
        await until(lambda: bool(receiver.calls))
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        assert attempt.cancelled()
        receiver.delay_s = 0
        assert (await exporter.export(spans(1))).verdict is Verdict.ACCEPTED


@in_a_loop
async def test_proxies_of_the_environment_are_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert (await sent(settings(receiver))).verdict is Verdict.ACCEPTED


@in_a_loop
async def test_tls_takes_servers_of_the_authority_only(protocol: Protocol, tmp_path: Path) -> None:
    ours, others = Authority(tmp_path), Authority(tmp_path, "others")
    with listening(protocol, Tls(ours.issue("server"))) as receiver:
        assert (await sent(settings(receiver, certificate=ours.certificate))).verdict is Verdict.ACCEPTED
        for stranger in (others.certificate, None):
            result = await sent(settings(receiver, certificate=stranger))
            assert result.verdict is Verdict.RETRY
            assert "CERTIFICATE_VERIFY_FAILED" in result.detail.upper()
    with listening(protocol, Tls(ours.issue("impostor", host="collector.example"))) as receiver:
        assert (await sent(settings(receiver, certificate=ours.certificate))).verdict is Verdict.RETRY
        assert not receiver.calls


@in_a_loop
async def test_mutual_tls_shows_the_clients_certificate(protocol: Protocol, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    client = authority.issue("client")
    stranger = Authority(tmp_path, "others").issue("stranger")
    with listening(protocol, Tls(authority.issue("server"), clients=authority.certificate)) as receiver:
        otlp = settings(receiver, certificate=authority.certificate)
        shown = otlp._replace(client_key=client.key, client_certificate=client.certificate)
        assert (await sent(shown)).verdict is Verdict.ACCEPTED
        for key, certificate in ((None, None), stranger):
            result = await sent(otlp._replace(client_key=key, client_certificate=certificate))
            assert result.verdict is Verdict.RETRY
        assert len(receiver.spans) == 1


@in_a_loop
async def test_tls_files_that_changed_are_read_again(
    protocol: Protocol, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, expired = Authority(tmp_path), Authority(tmp_path, "expired")
    files = tmp_path / "mounted.pem"
    shutil.copy(expired.certificate, files)
    with listening(protocol, Tls(authority.issue("server"))) as receiver:
        async with opened(settings(receiver, certificate=files)) as exporter:
            assert (await exporter.export(spans(1))).verdict is Verdict.RETRY
            files.unlink()  # in the middle of being replaced
            assert (await exporter.export(spans(1))).verdict is Verdict.RETRY
            assert "cannot be used yet" in caplog.text
            shutil.copy(authority.certificate, files)
            await until_accepted(lambda: exporter.export(spans(1)))


@in_a_loop
async def test_tls_files_that_cannot_be_used_are_named(protocol: Protocol, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    otlp = Otlp("https://127.0.0.1:1", insecure=False, certificate=missing, protocol=protocol)
    with pytest.raises(ExporterError, match=r"missing\.pem"):
        open_exporter(otlp, "traces")
