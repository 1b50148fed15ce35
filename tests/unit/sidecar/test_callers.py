"""The callers' file: what it says, and what is refused by which name."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidInputError
from engine.names import action_matches, check_action_pattern
from engine.tokenfiles import MAX_TOKEN_BYTES
from engine.watched import WatchedFiles
from sidecar.callers import Caller, Callers, CallersError, read_callers
from tests.fakes.callers import CALLERS, TOKENS, Mount


def token_hash(token: str) -> bytes:
    return sha256(token.encode()).digest()


def read(mount: Mount) -> Callers:
    return read_callers(str(mount.callers), WatchedFiles())


def refusal(mount: Mount) -> str:
    with pytest.raises(CallersError) as refused:
        read(mount)
    message = str(refused.value)
    assert not any(token in message for token in TOKENS.values())
    return message.removeprefix(f"{mount.callers}: ")


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path / "callers")


def test_callers_are_found_by_their_tokens(mount: Mount) -> None:
    callers = read(mount)
    assert callers.size == 2
    assert callers.warnings == ()
    payments, browsing = (callers.by_hash[token_hash(TOKENS[name])] for name in ("payments", "browsing"))
    assert (payments.name, payments.diagnose, payments.rpcs) == (
        "payments",
        True,
        {"Evaluate", "EvaluateBatch", "Settle", "ReportOutcome"},
    )
    assert (browsing.name, browsing.diagnose, browsing.rpcs) == ("browsing", False, {"Evaluate"})
    assert payments.may_ask_about("payments.transfer")
    assert not payments.may_ask_about("browse.items")
    assert browsing.may_ask_about("payments.transfer")
    assert not browsing.may_ask_about("payments.payout")


def test_no_token_is_kept(mount: Mount) -> None:
    assert not any(token in repr(read(mount)) for token in TOKENS.values())


def test_several_tokens_are_valid_at_once(mount: Mount) -> None:
    tokens = [f"token-{number}-0123456789" for number in range(4)]
    mount.put(payments=f"{tokens[0]}\n\n  {tokens[1]}\t\r\n", more="\n".join(tokens[2:]))
    mount.put(
        **{"callers.yaml": mount.document([CALLERS[0] | {"tokens": [mount.path("payments"), mount.path("more")]}])}
    )
    callers = read(mount)
    assert callers.size == 1
    assert {callers.by_hash[token_hash(token)].name for token in tokens} == {"payments"}
    assert len(callers.by_hash) == 4


def test_a_token_file_may_not_exist_yet(mount: Mount) -> None:
    mount.put(payments=None)
    callers = read(mount)
    assert [caller.name for caller in callers.by_hash.values()] == ["browsing"]
    assert callers.size == 2
    (warning,) = callers.warnings
    assert f"callers[0].tokens[0]: {mount.path('payments')}: there is no such file" in warning


def test_a_file_that_anybody_may_read_is_warned_about(mount: Mount) -> None:
    os.chmod(mount.path("browsing"), 0o644)
    (warning,) = read(mount).warnings
    assert f"callers[1].tokens[0]: {mount.path('browsing')}: every user" in warning


OTHER: dict[str, Any] = {"name": "other", "actions": ["*"], "tokens": ["/nowhere"]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "Payments"}, "callers[0].name: not a name"),
        ({"name": "p" * 64}, "callers[0].name: not a name"),
        ({"name": "pay\nments"}, "callers[0].name: not a name"),
        ({"name": 7}, "callers[0].name: "),
        ({"tokens": []}, "callers[0].tokens: "),
        ({"tokens": "/run/token"}, "callers[0].tokens: "),
        ({"tokens": ["payments-token-0123456789"]}, "callers[0].tokens[0]: not an absolute path"),
        ({"tokens": ["/run/tok\0en"]}, "callers[0].tokens[0]: not an absolute path"),
        ({"rpcs": []}, "callers[0].rpcs: "),
        (
            {"rpcs": ["Evaluate", "Check"]},
            "callers[0].rpcs[1]: Input should be "
            "'Evaluate', 'EvaluateBatch', 'Settle', 'ReportOutcome' or 'ReportAuthentication'",
        ),
        ({"actions": []}, "callers[0].actions: "),
        ({"actions": ["*", "pay*"]}, "callers[0].actions[1]: 'pay*': '*' stands alone or after a dot"),
        ({"actions": [""]}, "callers[0].actions[0]: must not be empty"),
        ({"diagnose": "yes"}, "callers[0].diagnose: "),
        ({"diagnose": 1}, "callers[0].diagnose: "),
        ({"diagnosed": True}, "callers[0].diagnosed: unknown key"),
    ],
)
def test_a_bad_entry_is_refused_by_file_and_field(mount: Mount, change: dict[str, Any], problem: str) -> None:
    mount.put(**{"callers.yaml": mount.document([CALLERS[0] | change, OTHER])})
    assert problem in refusal(mount)


@pytest.mark.parametrize("left_out", ["name", "tokens", "actions"])
def test_what_must_be_said_is_named(mount: Mount, left_out: str) -> None:
    entry = {field: value for field, value in OTHER.items() if field != left_out}
    mount.put(**{"callers.yaml": f"callers: [{entry}]"})
    assert f"callers[0].{left_out}: is required" in refusal(mount)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty document"),
        ("[]", "valid dictionary"),
        ("callers: []", "callers: "),
        ("callers: [", "not YAML"),
        ("callers: []\ncallers: []", "2:1: callers: given twice"),
        ("clients: []", "clients: unknown key"),
        ("a" * 300_000, "larger than"),
    ],
)
def test_a_file_that_says_nothing_useful_is_refused(mount: Mount, text: str, problem: str) -> None:
    mount.put(**{"callers.yaml": text})
    assert problem in refusal(mount)


def test_a_file_that_cannot_be_read_is_refused(mount: Mount, tmp_path: Path) -> None:
    mount.put(**{"callers.yaml": None})
    assert refusal(mount) == "no such file"
    (tmp_path / "folder").mkdir()
    with pytest.raises(CallersError, match="folder: not a regular file"):
        read_callers(str(tmp_path / "folder"), WatchedFiles())
    (tmp_path / "latin").write_bytes(b"callers: [{name: caf\xe9}]")
    with pytest.raises(CallersError, match="latin: is not UTF-8 text"):
        read_callers(str(tmp_path / "latin"), WatchedFiles())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no token"),
        ("\n \n", "holds no token"),
        ("0123456789abcde", "line 1: a token has 16 to 1024 bytes"),
        ("payments-token-0123456789\nshort", "line 2: a token has 16 to 1024 bytes"),
        ("x" * (MAX_TOKEN_BYTES + 1), "line 1: a token has"),
        ("payments token 0123456789", "line 1: a token is printable ASCII"),
        ("payments-token-ü-0123456789", "line 1: a token is printable ASCII"),
        ("payments-token\x00-0123456789", "line 1: a token is printable ASCII"),
        ("browsing-token-0123456789", "holds a token that"),
        ("x\n" * 40_000, "larger than 65536 bytes"),
    ],
)
def test_a_bad_token_file_is_refused_and_not_repeated(mount: Mount, text: str, problem: str) -> None:
    mount.put(payments=text)
    message = refusal(mount)
    assert problem in message
    assert "tokens[0]: " in message
    assert "payments-token" not in message


def test_the_shortest_and_the_longest_token_are_taken(mount: Mount) -> None:
    mount.put(payments=f"{'a' * 16}\n{'b' * MAX_TOKEN_BYTES}")
    assert len(read(mount).by_hash) == 3


def test_a_named_pipe_does_not_hang(mount: Mount, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    mount.put(**{"callers.yaml": mount.document([OTHER | {"tokens": [str(tmp_path / "pipe")]}])})
    assert "tokens[0]: " in (message := refusal(mount))
    assert "not a regular file" in message


def test_a_name_given_twice_is_refused(mount: Mount) -> None:
    mount.put(**{"callers.yaml": mount.document([CALLERS[0], CALLERS[0]])})
    assert refusal(mount) == "callers[1].name: payments is named twice"


WORDS = st.sampled_from(["pay", "payments", "a-b", "x"])
ACTIONS = st.lists(WORDS, min_size=1, max_size=3).map(".".join)
PATTERNS = st.one_of(ACTIONS, ACTIONS.map(lambda action: f"{action}.*"), st.just("*"))


@given(st.lists(PATTERNS, min_size=1, max_size=4), st.one_of(ACTIONS, st.text(max_size=8)))
def test_patterns_mean_what_they_mean_in_policies(patterns: list[str], action: str) -> None:
    caller = Caller.of("payments", ["Evaluate"], patterns, diagnose=False)
    assert caller.may_ask_about(action) == any(action_matches(pattern, action) for pattern in patterns)


@given(PATTERNS)
def test_the_generated_patterns_are_possible_ones(pattern: str) -> None:
    try:
        check_action_pattern(pattern, "actions")
    except InvalidInputError:
        pytest.fail(pattern)
