"""One suite, both transports: what a worker loop may rely on, over real sockets with a grpcio client."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sidestep.v1 import decision_pb2  # noqa: F401 - registers the service that reflection describes

from sidecar.front.grpcio import GrpcioTransport
from sidecar.front.native import NativeTransport
from sidecar.front.transport import MAX_WAITING, Call, Method, StatusCode, Transport, TransportError
from sidecar.listeners import Address, Listener, parse_listeners
from sidecar.retryinfo import retry_after_s, retry_status
from tests.processes import until

LIMIT = 64 << 10
METHODS = (
    Method("/test.Echo/Say", LIMIT),
    Method("/test.Echo/SayMuch", 4 << 20),
    Method("/test.Echo/Tick", LIMIT, True),
)
TRANSPORTS = {"native": NativeTransport, "grpcio": GrpcioTransport}
TCP = Listener(Address("127.0.0.1", 0))
PATIENCE_S = 10.0
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Echo:
    """A loop over a transport: answers with the payload, keeps what begins with `hold` until `release` is set."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.seen: list[Call] = []
        self.held: list[Call] = []
        self.streams: list[Call] = []
        self.release = threading.Event()
        # While set, nothing is taken from the transport.
        self.stall = threading.Event()
        self.stalled = threading.Event()
        # Above 0, one call is taken per so many seconds.
        self.pace_s = 0.0
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Echo:
        self.transport.start()
        self._thread.start()
        return self

    def stop(self) -> None:
        self.stall.clear()
        self.transport.drain(0.0)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self.transport.close()

    def target(self, listener: Listener) -> str:
        return f"unix:{listener.path}" if listener.path else f"127.0.0.1:{self.transport.port}"

    def _run(self) -> None:
        while (calls := self._take()) is not None:
            for call in calls:
                self.seen.append(call)
                self._serve(call)
            if self.release.is_set():
                for call in self.held:
                    self.transport.answer(call, b"released")
                self.held.clear()
        self.ended.set()

    def _take(self) -> list[Call] | None:
        if self.stall.is_set():
            self.stalled.set()
            threading.Event().wait(0.002)
            return []
        if self.pace_s:
            threading.Event().wait(self.pace_s)
            return self.transport.receive(1, 0.0)
        return self.transport.receive(64, 0.01)

    def _serve(self, call: Call) -> None:
        if METHODS[call.method].streaming:
            self.streams.append(call)
        elif call.payload.startswith(b"hold"):
            self.held.append(call)
        elif call.payload == b"fail":
            self.transport.fail(call, StatusCode.INVALID_ARGUMENT, "subject.id: must not be empty – ü")
        elif call.payload == b"wait":
            code = StatusCode.RESOURCE_EXHAUSTED
            self.transport.fail(call, code, "later", retry_status(code, "later", 1.5))
        elif call.payload.startswith(b"fail "):
            self.transport.fail(call, StatusCode(int(call.payload[5:])), "because")
        else:
            self.transport.answer(call, call.payload)


@pytest.fixture(params=sorted(TRANSPORTS))
def make(request: pytest.FixtureRequest) -> Any:
    return TRANSPORTS[request.param]


@pytest.fixture
def serve(make: Any) -> Iterator[Callable[..., Echo]]:
    loops: list[Echo] = []

    def serve(listener: Listener = TCP, **options: Any) -> Echo:
        loop = Echo(make(listener, METHODS, **options)).start()
        loops.append(loop)
        return loop

    yield serve
    for loop in loops:
        loop.release.set()
        loop.stop()


@pytest.fixture
def connect() -> Iterator[Callable[[str], grpc.Channel]]:
    with contextlib.ExitStack() as stack:

        def connect(target: str) -> grpc.Channel:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
            return stack.enter_context(grpc.insecure_channel(target, options=options))

        yield connect


@pytest.fixture(params=["tcp", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Listener:
    return TCP if request.param == "tcp" else Listener(path=str(tmp_path / "run" / "s.sock"))


def say(channel: grpc.Channel, payload: bytes, method: str = "Say", **options: Any) -> bytes:
    return channel.unary_unary(f"/test.Echo/{method}")(payload, timeout=options.pop("timeout", PATIENCE_S), **options)


def refusal(channel: grpc.Channel, payload: bytes, method: str = "Say", **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        say(channel, payload, method, **options)
    return caught.value


def test_unary_call_is_answered(serve: Any, connect: Any, listener: Listener) -> None:
    echo = serve(listener)
    assert say(connect(echo.target(listener)), b"hello") == b"hello"
    assert (echo.transport.port == 0) == bool(listener.path)


def test_empty_message_is_answered(serve: Any, connect: Any) -> None:
    assert say(connect(serve().target(TCP)), b"") == b""


def test_metadata_peer_and_deadline_reach_the_loop(serve: Any, connect: Any) -> None:
    echo = serve()
    say(connect(echo.target(TCP)), b"x", metadata=(("traceparent", "00-ab"), ("k-bin", b"\x00\xff")), timeout=5)
    call = echo.seen[0]
    assert call.metadata_value("traceparent") == "00-ab"
    assert call.metadata_value("absent") == ""
    assert ("k-bin", b"\x00\xff") in [tuple(pair) for pair in call.metadata]
    assert call.peer.startswith("ipv4:127.0.0.1:")
    assert 3.0 < call.deadline - time.monotonic() <= 5.1  # clients round up


def test_token_reaches_the_loop_as_it_was_sent(serve: Any, connect: Any, listener: Listener) -> None:
    echo = serve(listener)
    token = "Bearer " + "".join(map(chr, range(0x21, 0x7F))) * 4
    say(connect(echo.target(listener)), b"x", metadata=(("authorization", token), ("authorization", "Bearer second")))
    say(connect(echo.target(listener)), b"x")
    assert [call.metadata_value("authorization") for call in echo.seen] == [token, ""]


@pytest.mark.parametrize("code", list(StatusCode))
def test_every_status_is_told_as_it_is(serve: Any, connect: Any, code: StatusCode) -> None:
    error = refusal(connect(serve().target(TCP)), f"fail {code.value}".encode())
    assert (error.code().value[0], error.details()) == (code.value, "because")


def test_call_without_deadline_has_none(serve: Any, connect: Any) -> None:
    echo = serve()
    say(connect(echo.target(TCP)), b"x", timeout=None)
    assert echo.seen[0].deadline == float("inf")


def test_failure_carries_code_and_message(serve: Any, connect: Any) -> None:
    error = refusal(connect(serve().target(TCP)), b"fail")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "subject.id: must not be empty – ü"


def test_failure_carries_details(serve: Any, connect: Any) -> None:
    error = refusal(connect(serve().target(TCP)), b"wait")
    assert error.code() is _EXHAUSTED
    assert retry_after_s(error) == 1.5


def test_unknown_method_is_unimplemented(serve: Any, connect: Any) -> None:
    echo = serve()
    assert refusal(connect(echo.target(TCP)), b"", "Nothing").code() is grpc.StatusCode.UNIMPLEMENTED
    assert echo.seen == []


def test_message_limit_is_per_method_and_exact(serve: Any, connect: Any) -> None:
    echo = serve()
    channel = connect(echo.target(TCP))
    assert len(say(channel, bytes(LIMIT))) == LIMIT
    error = refusal(channel, bytes(LIMIT + 1))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LIMIT) in error.details()
    assert len(say(channel, bytes(LIMIT + 1), "SayMuch")) == LIMIT + 1
    assert refusal(channel, bytes((4 << 20) + 1), "SayMuch").code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(echo.seen) == 2
    assert say(channel, b"still here") == b"still here"


def test_garbage_on_the_wire_disturbs_nobody(serve: Any, connect: Any) -> None:
    echo = serve()
    channel = connect(echo.target(TCP))
    for garbage in (b"GET / HTTP/1.0\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(256)):
        with socket.create_connection(("127.0.0.1", echo.transport.port), timeout=PATIENCE_S) as raw:
            raw.sendall(garbage)
            assert say(channel, b"x") == b"x"


def test_deadline_ends_the_call_and_marks_it(serve: Any, connect: Any) -> None:
    echo = serve()
    channel = connect(echo.target(TCP))
    assert refusal(channel, b"hold", timeout=0.1).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: echo.held[0].cancelled, "the mark")
    echo.release.set()  # answering it late is harmless
    assert say(channel, b"x") == b"x"


def test_cancelled_call_is_marked(serve: Any, connect: Any) -> None:
    echo = serve()
    future = connect(echo.target(TCP)).unary_unary("/test.Echo/Say").future(b"hold")
    until(lambda: echo.held, "the call")
    future.cancel()
    until(lambda: echo.held[0].cancelled, "the mark")


def test_call_cancelled_while_waiting_never_reaches_the_loop(serve: Any, connect: Any) -> None:
    echo = serve()
    channel = connect(echo.target(TCP))
    say(channel, b"connected")
    echo.stall.set()
    assert echo.stalled.wait(PATIENCE_S)
    expiry = time.monotonic() + 0.2
    assert refusal(channel, b"gone", timeout=0.1).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    last = channel.unary_unary("/test.Echo/Say").future(b"last")
    until(lambda: time.monotonic() > expiry, "the deadline to pass at the server, too")
    echo.stall.clear()
    assert last.result(PATIENCE_S) == b"last"
    assert [call.payload for call in echo.seen] == [b"connected", b"last"]


def test_500_concurrent_calls_are_all_answered_with_their_own(serve: Any, connect: Any, listener: Listener) -> None:
    echo = serve(listener)
    method = connect(echo.target(listener)).unary_unary("/test.Echo/Say")
    futures = [method.future(b"%d" % number, timeout=PATIENCE_S) for number in range(500)]
    assert [future.result() for future in futures] == [b"%d" % number for number in range(500)]


def test_500_calls_held_at_once_are_all_answered(serve: Any, connect: Any) -> None:
    echo = serve()
    method = connect(echo.target(TCP)).unary_unary("/test.Echo/Say")
    futures = [method.future(b"hold %d" % number, timeout=PATIENCE_S) for number in range(500)]
    until(lambda: len(echo.held) == 500, "all calls")
    echo.release.set()
    assert {future.result() for future in futures} == {b"released"}


def test_more_calls_than_may_wait_are_refused(serve: Any, connect: Any) -> None:
    echo = serve()
    channels = [connect(echo.target(TCP)) for _ in range(3)]
    for channel in channels:
        say(channel, b"connected")
    echo.pace_s = 0.005
    methods = [channel.unary_unary("/test.Echo/Say") for channel in channels]
    futures = [method.future(b"x", timeout=PATIENCE_S) for _ in range(600) for method in methods]
    until(lambda: any(future.done() and future.code() is _EXHAUSTED for future in futures), "a refusal")
    echo.pace_s = 0.0
    codes = [future.code() for future in futures]
    assert set(codes) == {grpc.StatusCode.OK, _EXHAUSTED}
    assert codes.count(grpc.StatusCode.OK) >= MAX_WAITING
    assert say(channels[0], b"again") == b"again"


def test_stream_sends_and_ends(serve: Any, connect: Any) -> None:
    echo = serve()
    stream = connect(echo.target(TCP)).unary_stream("/test.Echo/Tick")(b"begin", timeout=PATIENCE_S)
    call = until(lambda: echo.streams, "the stream")[0]
    assert call.payload == b"begin"
    for message in (b"1", b"2", b"3"):
        until(lambda message=message: echo.transport.send(call, message), "room")
        assert next(stream) == message
    echo.transport.fail(call, StatusCode.UNAVAILABLE, "over")
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_stream_that_is_not_read_holds_back_and_is_marked_when_cancelled(serve: Any, connect: Any) -> None:
    echo = serve()
    stream = connect(echo.target(TCP)).unary_stream("/test.Echo/Tick")(b"", timeout=PATIENCE_S)
    call = until(lambda: echo.streams, "the stream")[0]
    until(lambda: not echo.transport.send(call, bytes(LIMIT)), "a full stream")
    stream.cancel()
    until(lambda: call.cancelled, "the mark")
    echo.transport.send(call, b"nobody there")  # harmless


def test_drain_answers_what_is_in_flight(serve: Any, connect: Any, listener: Listener) -> None:
    echo = serve(listener)
    method = connect(echo.target(listener)).unary_unary("/test.Echo/Say")
    futures = [method.future(b"hold %d" % number, timeout=PATIENCE_S) for number in range(100)]
    until(lambda: len(echo.held) == 100, "all calls")
    echo.transport.drain(PATIENCE_S)
    assert not echo.ended.wait(0.4)
    echo.release.set()
    assert {future.result() for future in futures} == {b"released"}
    assert echo.ended.wait(PATIENCE_S)


def test_drain_loses_no_call_under_load(serve: Any, connect: Any) -> None:
    echo = serve()
    channel = connect(echo.target(TCP))
    answered = 0
    failures: list[grpc.StatusCode] = []
    begun = threading.Event()

    def load() -> None:
        nonlocal answered
        while not failures:
            try:
                say(channel, b"x")
                answered += 1
                begun.set()
            except grpc.RpcError as error:
                failures.append(error.code())

    client = threading.Thread(target=load)
    client.start()
    assert begun.wait(PATIENCE_S)
    echo.transport.drain(1.0)
    assert echo.ended.wait(PATIENCE_S)
    echo.transport.close()
    client.join(PATIENCE_S)
    # No call hung, and none was cut off after it was taken.
    assert failures[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert answered == len(echo.seen)


def test_drain_ends_when_its_grace_has_passed(serve: Any, connect: Any) -> None:
    echo = serve()
    future = connect(echo.target(TCP)).unary_unary("/test.Echo/Say").future(b"hold", timeout=PATIENCE_S)
    until(lambda: echo.held, "the call")
    echo.transport.drain(0.2)
    assert echo.ended.wait(PATIENCE_S)
    echo.transport.close()
    assert future.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_close_ends_the_loop_and_may_be_repeated(serve: Any) -> None:
    echo = serve()
    echo.transport.close()
    assert echo.ended.wait(PATIENCE_S)
    echo.transport.close()


def test_listeners_are_apart(serve: Any, connect: Any, tmp_path: Path) -> None:
    other = Listener(path=str(tmp_path / "run" / "s.sock"))
    tcp, unix = serve(), serve(other)
    assert say(connect(tcp.target(TCP)), b"tcp") == b"tcp"
    assert say(connect(unix.target(other)), b"unix") == b"unix"
    assert [call.payload for call in tcp.seen] == [b"tcp"]
    assert [call.payload for call in unix.seen] == [b"unix"]


def test_two_share_a_tcp_port(serve: Any, connect: Any) -> None:
    first = serve()
    shared = Listener(Address("127.0.0.1", first.transport.port))
    second = serve(shared)
    assert second.transport.port == first.transport.port
    for number in range(64):
        say(connect(first.target(TCP)), b"%d" % number)
    assert len(first.seen) + len(second.seen) == 64
    assert first.seen
    assert second.seen


def test_port_in_use_by_another_is_refused(make: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(TransportError, match=str(other.getsockname()[1])):
            make(Listener(Address("127.0.0.1", other.getsockname()[1])), METHODS)


def test_socket_is_for_the_group_alone_and_goes_with_the_transport(serve: Any, make: Any, tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    echo = serve(Listener(path=str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not stat.S_IMODE(path.parent.stat().st_mode) & stat.S_IRWXO
    echo.transport.close()
    assert not path.exists()


def test_live_socket_is_not_taken_over(serve: Any, make: Any, connect: Any, tmp_path: Path) -> None:
    listener = Listener(path=str(tmp_path / "run" / "s.sock"))
    echo = serve(listener)
    with pytest.raises(TransportError, match="another process listens there"):
        make(listener, METHODS)
    assert say(connect(echo.target(listener)), b"x") == b"x"


def test_stale_socket_is_replaced(serve: Any, connect: Any, tmp_path: Path) -> None:
    listener = Listener(path=str(tmp_path / "s.sock"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(listener.path)
    assert say(connect(serve(listener).target(listener)), b"x") == b"x"


def test_file_that_is_no_socket_is_kept(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(TransportError, match="not a socket"):
        make(Listener(path=str(path)), METHODS)
    assert path.read_text() == "data"


def test_directory_open_to_others_is_refused(make: Any, tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(TransportError, match="0755"):
        make(parse_listeners(f"unix://{directory}/s.sock")[0], METHODS)


def _services(channel: grpc.Channel) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (response,) = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE_S)
    return {service.name for service in response.list_services_response.service}


def test_reflection_is_off_by_default(serve: Any, connect: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _services(connect(serve().target(TCP)))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_reflection_describes_the_services_beside_the_calls(serve: Any, connect: Any) -> None:
    channel = connect(serve(reflection=("sidestep.v1.DecisionService",)).target(TCP))
    assert "sidestep.v1.DecisionService" in _services(channel)
    assert say(channel, b"x") == b"x"
    assert refusal(channel, b"", "Nothing").code() is grpc.StatusCode.UNIMPLEMENTED
