"""Files of logins: written from a made-up story, and read to be played."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TypeVar

from sidecar.simulate.history import Told
from sidecar.simulate.rba import (
    Login,
    LoginReader,
    LoginWriter,
    RbaError,
    Truth,
    create_text,
    open_binary,
    read_truth,
    write_truth,
)

_T = TypeVar("_T")
_TELL_EVERY = 500


def truth_path(path: Path) -> Path:
    """Where the truth about a file of made-up logins is kept: `logins.truth.csv` beside `logins.csv`."""
    return path.with_name(f"{path.name.removesuffix('.gz').removesuffix('.csv')}.truth.csv")


def write_story(path: Path, story: Iterable[Told]) -> tuple[int, int]:
    """Writes logins to `path` and what belongs to attacks beside it; returns how many there are of both. Raises OSError."""
    attacks = 0

    def truths(logins: LoginWriter) -> Iterator[Truth]:
        nonlocal attacks
        for login, truth in story:
            logins.write(login)
            if truth is not None:
                attacks += 1
                yield truth

    with create_text(path) as text, create_text(truth_path(path)) as truth_text:
        writer = LoginWriter(text)
        write_truth(truth_text, truths(writer))
    return writer.count, attacks


@contextmanager
def open_logins(
    path: Path, truth: Path | None, limit: int | None, users: int | None, tell: Callable[[int], None]
) -> Iterator[tuple[Iterator[tuple[int, Login]], Iterator[Truth] | None]]:
    """The first `limit` logins of a file, of the first `users` people in it, with the numbers of their rows; and the truth, if it
    is known.

    `tell` is called now and then with how many bytes of the file are done. Raises OSError, and while they are read RbaError.
    """
    with ExitStack() as opened:
        content, raw = opened.enter_context(open_binary(path))
        logins = _of_file(path, _logins(content))
        entries = None
        if truth is not None:
            entries = _of_file(truth, read_truth(opened.enter_context(truth.open(encoding="utf-8", newline=""))))
        yield _chosen(logins, limit, users, lambda: tell(raw.tell())), entries


def _logins(content: IO[bytes]) -> Iterator[Login]:
    yield from LoginReader(content)


def _of_file(path: Path, entries: Iterator[_T]) -> Iterator[_T]:
    """The same, with the file named in what is wrong with it."""
    try:
        yield from entries
    except RbaError as error:
        raise RbaError(error.line, error.column, error.problem, str(path)) from None


def _chosen(
    logins: Iterable[Login], limit: int | None, users: int | None, tell: Callable[[], None]
) -> Iterator[tuple[int, Login]]:
    seen: set[str] = set()
    count = 0
    for index, login in enumerate(logins):
        if index % _TELL_EVERY == 0:
            tell()
        if users is not None and login.user not in seen:
            if len(seen) >= users:
                continue
            seen.add(login.user)
        if limit is not None and count >= limit:
            return
        count += 1
        yield index, login
