"""The lease client: a worker's thread that gets slices of budgets from the control plane, and accounts for them.

It begins with the first call that needs a slice: a pod without budgets pays nothing for it. Unary, idempotent calls on a channel
of its own; between failures it waits by full jitter, and meanwhile nobody is made to wait for a slice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message
from sidestep.v1 import lease_pb2 as pb

from engine.escrow import Account, Answer, Holder
from sidecar.lease.holders import AccountPeriod, HolderError, HolderFile
from sidecar.lease.leases import MAX_ACCOUNTS, Book, Leases
from sidecar.lease.wire import close_requests, from_lease_response, lease_requests
from sidecar.sync.backoff import Backoff
from sidecar.upstream import Upstream

LEASE: Final = "/sidestep.v1.LeaseService/Lease"
CLOSE_HOLDER: Final = "/sidestep.v1.LeaseService/CloseHolder"
OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
"""Of a channel to the control plane."""

_CALL_S: Final = 1.0
_TICK_S: Final = 0.25
_TIDY_S: Final = 0.1
_BACKOFF_LIMIT_S: Final = 5.0
REFUSED: Final = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT)
"""Of one tenant's request: it is not repeated as it is, and is nothing to the other tenants."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """`directory`: of the holder files. `chain`: the journal chain that holds this worker's spends. `boot`: see Clock.boot_id.
    `sidecar`: as in Hello. `report_s`: how soon it is told what was spent. `idle_s`: when what nobody uses is given back;
    `warm_s`: when the next use of what was used repeatedly is. `heard_s`: how long it is believed that nothing is left."""

    directory: Path
    chain: str
    boot: str
    upstream: Upstream
    sidecar: str
    report_s: float = 1.0
    idle_s: float = 2.0
    heard_s: float = 1.0
    warm_s: float = 5.0
    metadata: Sequence[tuple[str, str]] = ()


class LeaseClient:
    """Runs in a thread of its own from `start` to `close`. `leases` is what the loops see of it."""

    def __init__(self, settings: LeaseSettings) -> None:
        self._settings = settings
        self._wake = threading.Event()
        self.leases = Leases(self._wake.set)
        self._holders = 0
        self._channel: grpc.Channel | None = None
        self._generation = 0
        self._backoff = Backoff(limit_s=_BACKOFF_LIMIT_S)
        self._ask_at = self._report_at = self._tidy_at = 0.0
        self._failing = False
        # Tenants the last request for which was refused.
        self._refused: set[str] = set()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Ends, and closes what is held, with exact totals; for when the loops have ended. False: that is left to the agent."""
        deadline = time.monotonic() + timeout_s
        self.leases.close()
        self._stopped = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        self.leases.adopt(None)
        done = True
        for book in self.leases.finished():
            left_s = max(0.05, deadline - time.monotonic())
            done = self._close_book(book, left_s) and done
            book.file.close()
        if self._channel is not None:
            self._channel.close()
        return done

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(_TICK_S)
            self._wake.clear()
            try:
                self._step()
            except Exception:
                _log.exception("leases: a fault")
                self.leases.fail(self._backoff.next_s())

    def _step(self) -> None:
        now = time.monotonic()
        settings = self._settings
        if now >= self._tidy_at:
            self._tidy_at = now + min(_TIDY_S, settings.idle_s)
            self.leases.tidy(settings.idle_s, settings.heard_s, settings.warm_s)
        book = self.leases.book
        if now < self._ask_at:
            return
        if self.leases.wishes() and (book is None or len(book.file) >= MAX_ACCOUNTS):
            book = self._begin()
        for retired in self.leases.finished():
            if self._close_book(retired, _CALL_S):
                self.leases.forget(retired)
        if book is not None and (self.leases.wishes() or (book.spent and now >= self._report_at)):
            self._report_at = now + settings.report_s
            self._talk(book)

    def _begin(self) -> Book | None:
        """Another holder; its file is there before the control plane hears of it."""
        settings = self._settings
        try:
            file = HolderFile(settings.directory, settings.chain, self._holders, settings.boot)
        except HolderError as error:
            self._failed(f"no holder can be made: {error}")
            self.leases.fail(self._ask_at - time.monotonic())
            return self.leases.book
        self._holders += 1
        book = Book(file, Holder(file.holder))
        self.leases.adopt(book)
        return book

    def _talk(self, book: Book) -> None:
        message = self.leases.message()
        if message is None:
            return
        try:
            for request in lease_requests(message, self._settings.sidecar, book.currencies):
                book.file.number(AccountPeriod(request.tenant))
                response = self._call_unless_refused(LEASE, request, pb.LeaseResponse.FromString, _CALL_S)
                if response is None:
                    continue
                answer = from_lease_response(request.tenant, response)
                self.leases.absorb(book, answer, self._number(book, answer))
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            self._failed(_describe(error))
            self.leases.failed(book, message, self._ask_at - time.monotonic())
            if code is grpc.StatusCode.FAILED_PRECONDITION:
                # It was closed: whatever it holds is somebody else's now.
                file = self.leases.abandon()
                if file is not None:
                    file.remove()
        except HolderError as error:
            self._failed(str(error))
            self.leases.failed(book, message, self._ask_at - time.monotonic())
            self.leases.adopt(None)
        else:
            self.leases.answered(message)
            if self._failing:
                _log.info("leases: the control plane answers again")
            self._failing = False
            self._backoff.reset()

    def _number(self, book: Book, answer: Answer) -> dict[tuple[Account, int], int]:
        """The accounts' numbers, once they are in the holder's file: only then may anything be spent of them."""
        return {
            (each.account, each.period): book.file.number(AccountPeriod(*each.account, each.period))
            for each in answer.slices
        }

    def _close_book(self, book: Book, timeout_s: float) -> bool:
        """Tells the control plane all that a holder spent. False: it does not know yet."""
        if book.taken:
            return False
        requests = close_requests(
            book.holder.id, self._settings.sidecar, book.standings(), book.tenants(), book.currencies
        )
        try:
            for request in requests:
                self._call_unless_refused(CLOSE_HOLDER, request, pb.CloseHolderResponse.FromString, timeout_s)
        except grpc.RpcError as error:
            self._failed(_describe(error))
            return False
        book.file.remove()
        return True

    def _call_unless_refused(
        self,
        method: str,
        request: pb.LeaseRequest | pb.CloseHolderRequest,
        parse: Callable[[bytes], _T],
        timeout_s: float,
    ) -> _T | None:
        """As `_call`; None: the control plane will not hear of the tenant, whose slices count as spent."""
        try:
            response = self._call(method, request, parse, timeout_s)
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call) or error.code() not in REFUSED:
                raise
            if request.tenant not in self._refused:
                self._refused.add(request.tenant)
                _log.error("leases: tenant %s gets no slices: %s", request.tenant, _describe(error))
            return None
        self._refused.discard(request.tenant)
        return response

    def _call(self, method: str, request: Message, parse: Callable[[bytes], _T], timeout_s: float) -> _T:
        upstream = self._settings.upstream
        generation = upstream.generation()
        if self._channel is not None and generation != self._generation:
            self._channel.close()
            self._channel = None
        if self._channel is None:
            self._channel = upstream.open(OPTIONS)
            self._generation = generation
        call = self._channel.unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=parse
        )
        response: _T = call(request, timeout=timeout_s, metadata=tuple(self._settings.metadata), wait_for_ready=False)
        return response

    def _failed(self, why: str) -> None:
        if not self._failing:  # once per outage, not once per attempt
            _log.warning("leases: %s; grants with a budget do not apply until this worker has a slice", why)
        self._failing = True
        self._ask_at = time.monotonic() + self._backoff.next_s()


def _describe(error: grpc.RpcError) -> str:
    if isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return f"{error.code().name}: {(error.details() or '')[:200]}"
    return type(error).__name__
