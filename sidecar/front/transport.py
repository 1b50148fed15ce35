"""The seam between a worker loop and what speaks gRPC for it. Two implementations, one contract suite.

A transport accepts calls on one listener by itself, outside the loop, and keeps those that wait within bounds: a message
over its method's size limit and a call over `MAX_WAITING` are refused with RESOURCE_EXHAUSTED, a call that was cancelled
or whose time ran out while it waited is dropped. The loop takes calls, answers each once, and is the only thread that
uses the transport, but for `drain` and `close`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import msgspec

from engine.errors import SidestepError
from sidecar.listeners import Listener

DETAILS = "grpc-status-details-bin"
"""Trailing metadata that carries a google.rpc.Status."""

MAX_WAITING = 1024
"""Calls that may wait for the loop, and calls that may be in flight on one connection."""

WAKE_S = 0.25
"""Longest a `receive` need wait to notice that it was drained or closed."""

NO_DEADLINE = float("inf")


def oversize(size: int, limit: int) -> str:
    """What a caller whose message is too large is told."""
    return f"the message has {size} bytes, the limit is {limit}"


def overflow() -> str:
    """What a caller is told whose call finds no place to wait."""
    return f"more than {MAX_WAITING} calls are waiting"


class TransportError(SidestepError):
    """A listener that cannot be opened."""


class StatusCode(IntEnum):
    """The gRPC status codes Sidestep answers with (google.rpc.Code)."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Method(NamedTuple):
    """A method the transport accepts: `/package.Service/Method`, how large its messages may be, and whether it streams
    its answers. Calls carry its index in the list of methods."""

    path: str
    max_bytes: int
    streaming: bool = False


class Call(msgspec.Struct, eq=False, gc=False):
    """One call that waits for an answer."""

    # Index of its method.
    method: int
    payload: bytes
    # Pairs of lower-case key and value; values of `-bin` keys are bytes.
    metadata: Sequence[tuple[str, str | bytes]]
    # As gRPC writes it: `ipv4:127.0.0.1:5000`, `unix:`.
    peer: str
    # By time.monotonic(); NO_DEADLINE if the caller set none.
    deadline: float
    # The transport's own reference to the call.
    handle: Any
    # The caller has gone; nobody reads an answer. Set by the transport.
    cancelled: bool = False

    def metadata_value(self, key: str) -> str:
        """The first value of a text key; empty if absent."""
        for name, value in self.metadata:
            if name == key and isinstance(value, str):
                return value
        return ""


class Transport(Protocol):
    """One listener. Made with its listener and methods; bound, but not yet accepting, once constructed.

    Constructors raise TransportError if the listener cannot be opened.
    """

    @property
    def port(self) -> int:
        """The bound TCP port; 0 for a Unix socket."""

    def start(self) -> None:
        """Begins to accept calls."""

    def receive(self, max_calls: int, timeout_s: float) -> list[Call] | None:
        """Takes calls in the order they came, waiting for the first at most `timeout_s` (0: not at all).

        None once the transport has drained or was closed: no call will come any more.
        """

    def answer(self, call: Call, payload: bytes) -> None:
        """Ends a unary call with its answer. Harmless if the caller has gone."""

    def fail(self, call: Call, code: StatusCode, message: str, details: bytes = b"") -> None:
        """Ends any call with a status. Harmless if the caller has gone.

        `details`: an encoded google.rpc.Status that says more than code and message; empty: there is none.
        """

    def send(self, call: Call, payload: bytes) -> bool:
        """Sends one message of a streaming call, which stays open. False: the last one is not out yet; try again later."""

    def drain(self, grace_s: float) -> None:
        """Begins to end: calls go on being served until none is left or `grace_s` has passed; then `receive` gives None.

        From any thread. New connections and calls are turned away where the transport can (GOAWAY); where it cannot, they
        are served while they come.
        """

    def close(self) -> None:
        """Ends at once; calls without an answer end UNAVAILABLE. From any thread; may be called twice."""


class TransportType(Protocol):
    """Constructs a transport."""

    def __call__(self, listener: Listener, methods: Sequence[Method], *, reflection: Sequence[str] = ()) -> Transport:
        """`reflection`: names of the services to describe to clients that ask; empty: reflection is off."""
