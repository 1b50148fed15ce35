"""A transport in memory: the test hands calls in and sees what the loop does with them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from google.protobuf.message import Message

from sidecar.front.transport import NO_DEADLINE, Call, StatusCode

EVALUATE, EVALUATE_BATCH, CHECK, LIST, WATCH = range(5)


class Desk:
    """`Transport` without a network. `before_answer` runs in the loop right before an answer would leave."""

    port = 0

    def __init__(self) -> None:
        self.answers: dict[object, bytes] = {}
        self.failures: dict[object, tuple[StatusCode, str]] = {}
        self.messages: dict[object, list[bytes]] = {}
        # Handles in the order in which they were answered or failed.
        self.order: list[object] = []
        self.before_answer: Callable[[Call], None] = lambda call: None
        # While False, streams take no message.
        self.takes = True
        self._calls: deque[Call] = deque()
        self._changed = threading.Condition()
        self._draining = False

    def put(
        self,
        method: int,
        message: Message | bytes,
        handle: object,
        *,
        within_s: float | None = None,
        traceparent: str = "",
        authorization: str = "",
    ) -> Call:
        """A call arrives, with so much time left."""
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        deadline = NO_DEADLINE if within_s is None else time.monotonic() + within_s
        given = (("traceparent", traceparent), ("authorization", authorization))
        metadata = tuple(pair for pair in given if pair[1])
        call = Call(method, payload, metadata, "test", deadline, handle)
        with self._changed:
            self._calls.append(call)
            self._changed.notify()
        return call

    def start(self) -> None:
        """Nothing to do."""

    def receive(self, max_calls: int, timeout_s: float) -> list[Call] | None:
        with self._changed:
            if not self._calls and not self._draining and timeout_s:
                self._changed.wait(timeout_s)
            if not self._calls and self._draining:
                return None
            return [self._calls.popleft() for _ in range(min(max_calls, len(self._calls)))]

    def answer(self, call: Call, payload: bytes) -> None:
        self.before_answer(call)
        assert call.handle not in self.order, "answered twice"
        self.answers[call.handle] = payload
        self.order.append(call.handle)

    def fail(self, call: Call, code: StatusCode, message: str, details: bytes = b"") -> None:
        assert call.handle not in self.order, "ended twice"
        self.failures[call.handle] = (code, message)
        self.order.append(call.handle)

    def send(self, call: Call, payload: bytes) -> bool:
        if self.takes:
            self.messages.setdefault(call.handle, []).append(payload)
        return self.takes

    def drain(self, grace_s: float) -> None:
        with self._changed:
            self._draining = True
            self._changed.notify()

    def close(self) -> None:
        self.drain(0.0)
