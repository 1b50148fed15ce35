"""The service's own token: sent with every call, read again when it changes, and never where others could read it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sidestep.client import AsyncClient, Client, FailMode, Outcome, Question
from sidestep.v1 import decision_pb2

from tests.fakes.decision import Refuse, ScriptedSidecar

TOKEN, OTHER = "payments-token-0123456789", "another-token-0123456789"
QUESTION = Question(subject="alice", action="payments.transfer")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def answer(request: Any) -> Any:
    if isinstance(request, decision_pb2.EvaluateRequest):
        return decision_pb2.EvaluateResponse(outcome=decision_pb2.OUTCOME_ALLOW)
    result = decision_pb2.EvaluateBatchResult(
        response=decision_pb2.EvaluateResponse(outcome=decision_pb2.OUTCOME_ALLOW)
    )
    return decision_pb2.EvaluateBatchResponse(results=[result] * len(request.requests))


@pytest.fixture
def sidecar() -> Iterator[ScriptedSidecar]:
    with ScriptedSidecar(answer) as scripted:
        yield scripted


class Sync:
    """A client for threads, used for a few calls one after another."""

    def __init__(self, address: str, **options: Any) -> None:
        self._client = Client(address, timeout_s=5, **options)

    def ask(self, between: Callable[[], None] = lambda: None) -> None:
        """A question, something else, then a batch and a question."""
        with self._client as client:
            assert client.evaluate(QUESTION, traceparent=TRACEPARENT).allowed
            between()
            assert client.evaluate_batch([QUESTION])[0].allowed
            assert client.evaluate(QUESTION).allowed


class Async:
    """The same with the client for asyncio."""

    def __init__(self, address: str, **options: Any) -> None:
        self._client = AsyncClient(address, timeout_s=5, **options)

    def ask(self, between: Callable[[], None] = lambda: None) -> None:
        async def run() -> None:
            async with self._client as client:
                assert (await client.evaluate(QUESTION, traceparent=TRACEPARENT)).allowed
                between()
                assert (await client.evaluate_batch([QUESTION]))[0].allowed
                assert (await client.evaluate(QUESTION)).allowed

        asyncio.run(run())


both = pytest.mark.parametrize("kind", [Sync, Async])


def sent(sidecar: ScriptedSidecar) -> list[str | bytes | None]:
    return [metadata.get("authorization") for metadata in sidecar.metadata]


@both
def test_token_goes_with_every_call(kind: Any, sidecar: ScriptedSidecar) -> None:
    kind(sidecar.address, token=TOKEN).ask()
    assert sent(sidecar) == [f"Bearer {TOKEN}"] * 3
    assert sidecar.metadata[0]["traceparent"] == TRACEPARENT


@both
def test_without_a_token_no_header_is_sent(kind: Any, sidecar: ScriptedSidecar) -> None:
    kind(sidecar.address).ask()
    assert sent(sidecar) == [None] * 3


def rewrite(path: Path) -> None:
    path.write_text(f"{OTHER}\n")


def replace(path: Path) -> None:
    path.with_name("fresh").write_text(f"\n  {OTHER}\n{TOKEN}\n")
    os.replace(path.with_name("fresh"), path)


@both
@pytest.mark.parametrize("change", [rewrite, replace])
def test_token_file_is_read_again_when_it_changes(
    kind: Any, change: Callable[[Path], None], sidecar: ScriptedSidecar, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n{OTHER}\n")
    kind(sidecar.address, token_file=path).ask(lambda: change(path))
    assert sent(sidecar) == [f"Bearer {TOKEN}", f"Bearer {OTHER}", f"Bearer {OTHER}"]


@both
def test_same_length_in_the_same_tick_is_noticed(
    kind: Any, sidecar: ScriptedSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system whose clock did not move between the two."""
    path = tmp_path / "token"
    path.write_text("a" * 24)
    monkeypatch.setattr("sidestep.client._credentials._stamp", lambda found: (1,))
    kind(sidecar.address, token_file=str(path)).ask(lambda: rewrite_same_length(path))
    assert sent(sidecar)[1:] == ["Bearer " + "b" * 24] * 2


def test_unchanged_token_file_is_not_read_again(
    sidecar: ScriptedSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = time.time_ns
    monkeypatch.setattr("sidestep.client._credentials.time.time_ns", lambda: now_ns() + 3600 * 10**9)
    path = tmp_path / "token"
    path.write_text(TOKEN)
    asking = Sync(sidecar.address, token_file=path)
    monkeypatch.setattr("sidestep.client._credentials.Credentials._read", None)
    asking.ask()
    assert sent(sidecar) == [f"Bearer {TOKEN}"] * 3


def rewrite_same_length(path: Path) -> None:
    path.write_text("b" * 24)


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_text("\n")


@both
@pytest.mark.parametrize("spoil", [remove, empty])
def test_token_file_that_goes_bad_leaves_the_last_token_and_is_told_once(
    kind: Any,
    spoil: Callable[[Path], None],
    sidecar: ScriptedSidecar,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    kind(sidecar.address, token_file=path).ask(lambda: spoil(path))
    assert sent(sidecar) == [f"Bearer {TOKEN}"] * 3
    (record,) = [record for record in caplog.records if record.name == "sidestep.client"]
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"token": ""}, "token: holds no token"),
        ({"token": "two words"}, "token: a token is printable ASCII"),
        ({"token": "line\nbreak"}, "token: a token is printable ASCII"),
        ({"token": "tökén"}, "token: a token is printable ASCII"),
        ({"token": TOKEN, "token_file": "/nowhere"}, "token, token_file: only one of them"),
        ({"token_file": "/nowhere/token"}, "token_file: /nowhere/token: No such file"),
        ({"token_file": "/dev/null"}, "token_file: /dev/null: holds no token"),
    ],
)
def test_token_that_cannot_be_sent_is_refused(client: Any, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refused:
        client("127.0.0.1:9191", **options)
    assert TOKEN not in str(refused.value)
    assert "break" not in str(refused.value)


LOCAL = ["127.0.0.1:9191", "127.8.0.1:1", "[::1]:9191", "localhost:9191", "unix:///run/s.sock", "unix:/run/s.sock"]
REMOTE = [
    "10.0.0.1:9191",
    "sidecar.acme.example:9191",
    "localhost.evil.example:9191",
    "127.0.0.1.evil.example:9191",
    "[2001:db8::1]:9191",
    "0.0.0.0:9191",
    "dns:///127.0.0.1:9191",
    "ipv4:10.0.0.1:9191,127.0.0.1:9191",
    "9191",
]


@pytest.mark.parametrize("address", LOCAL)
def test_token_may_be_used_on_this_machine(address: str) -> None:
    Client(address, token=TOKEN).close()


@pytest.mark.parametrize("address", REMOTE)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_token_does_not_leave_this_machine_unless_told(client: Any, address: str) -> None:
    with pytest.raises(ValueError, match="insecure_token"):
        client(address, token=TOKEN)


@pytest.mark.parametrize("address", REMOTE)
def test_token_may_leave_this_machine_if_told(address: str) -> None:
    Client(address).close()
    Client(address, token=TOKEN, insecure_token=True).close()


def test_refused_service_never_fails_open() -> None:
    def refuse(request: Any) -> Any:
        raise Refuse(grpc.StatusCode.UNAUTHENTICATED, "a caller's token is needed")

    with ScriptedSidecar(refuse) as sidecar, Client(sidecar.address, timeout_s=5, fail_mode=FailMode.ALLOW) as client:
        decision = client.evaluate(QUESTION)
    assert decision.outcome is Outcome.STEP_UP
    assert decision.error == "UNAUTHENTICATED: a caller's token is needed"
