"""How commands fail: one line on stderr and an exit code that scripts can rely on (docs/cli.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import click
import grpc

REFUSED = 1
BAD_INPUT = 2
UNREACHABLE = 3
NOT_FOUND = 4
STEP_UP = 10
DENY = 11
DIFFERENT = 12
# Records are missing, altered or left over.
FINDINGS = 13
# Not every sidecar has a revision; one that lacks it refuses a change.
NOT_EVERYONE = 14
REFUSING = 15

_EXIT_CODES = {
    grpc.StatusCode.UNAVAILABLE: UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: UNREACHABLE,
    grpc.StatusCode.NOT_FOUND: NOT_FOUND,
}


# What a failed TLS handshake looks like from here, and what it means for the options.
_HANDSHAKE = (
    ("CERTIFICATE_VERIFY_FAILED", " (the server's certificate is not signed by an authority in --ca, or has expired)"),
    ("Hostname Verification", " (the server's certificate is for another name than --server)"),
    ("WRONG_VERSION_NUMBER", " (the server speaks no TLS at this address)"),
    (
        "Socket closed",
        " (a server with TLS does so where --ca, or a certificate it accepts in --cert and --key, is missing)",
    ),
)


class Failure(click.ClickException):
    """Ends the command. `message` is one line, `field: problem` where a field is at fault."""

    def __init__(self, message: str, exit_code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = exit_code

    def lines(self) -> list[str]:
        """What stderr shows."""
        return [f"error: {self.message}"]


class Fault(NamedTuple):
    """One fault of a file. Line and column count from 1; 0: not known."""

    line: int
    column: int
    path: str
    message: str


class FileFailure(Failure):
    """A file with faults: each as `file:line:column: path: message`, with the line and a caret under the column."""

    def __init__(self, file: str, text: str, faults: Sequence[Fault]) -> None:
        super().__init__(f"{file}: {len(faults)} problem{'s' if len(faults) != 1 else ''}")
        self._file = file
        self._text = text.splitlines()
        self._faults = faults

    def lines(self) -> list[str]:
        """What stderr shows."""
        shown = []
        for line, column, path, message in self._faults:
            place = ":".join([self._file, *(str(number) for number in (line, column) if number)])
            # Compilers give several lines; the first says what, the rest repeats the source.
            problem = message.splitlines()[0] if message else "not valid"
            shown.append(f"error: {place}: {path + ': ' if path else ''}{problem}")
            if 0 < line <= len(self._text) and column:
                source = self._text[line - 1]
                # Tabs stay tabs above the caret, so that it stands under its column however wide they are.
                indent = "".join("\t" if char == "\t" else " " for char in source[: max(column - 1, 0)])
                shown += [f"  {source}", f"  {indent}^"]
        return shown


def from_rpc(error: grpc.RpcError, server: str) -> Failure:
    """The failure that a failed call means."""
    code: grpc.StatusCode = error.code()
    details = " ".join((error.details() or "").split())
    exit_code = _EXIT_CODES.get(code, REFUSED)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(f"{server}: no answer within the deadline", exit_code)
    if code is grpc.StatusCode.UNAVAILABLE:
        hint = next((hint for sign, hint in _HANDSHAKE if sign in details), "")
        return Failure(f"{server}: unavailable: {details or 'no connection'}{hint}", exit_code)
    return Failure(details or code.name, exit_code)
