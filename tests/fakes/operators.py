"""An operators' file with its token files, in a folder of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TOKENS = {name: f"{name}-token-0123456789" for name in ("alice", "bob", "carol", "eve")}
# alice and bob administer acme; carol reads everything; eve administers another tenant.
OPERATORS: list[dict[str, Any]] = [
    {"name": "alice", "tenants": ["acme"], "permissions": ["read", "write", "approve"]},
    {"name": "bob", "tenants": ["acme"], "permissions": ["write", "approve"]},
    {"name": "carol", "tenants": "*"},
    {"name": "eve", "tenants": ["globex"], "permissions": ["write", "approve"]},
]


class OperatorFiles:
    """`files.path` is the document; `files.token_file("alice")` what --operator-token-file takes."""

    def __init__(self, folder: Path, operators: list[dict[str, Any]] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.path = str(folder / "operators.yaml")
        for name, token in TOKENS.items():
            self.put(name, f"{token}\n")
        self.write(OPERATORS if operators is None else operators)

    def token_file(self, name: str) -> str:
        return str(self.folder / name)

    def put(self, name: str, text: str) -> None:
        """Writes a file of the folder as a whole, readable by its owner."""
        staged = self.folder / f".{name}"
        staged.write_text(text)
        staged.chmod(0o600)
        staged.replace(self.folder / name)

    def write(self, operators: list[dict[str, Any]]) -> None:
        """Writes the document; an operator without `tokens` has the file of its name."""
        entries = [{"tokens": [self.token_file(str(entry["name"]))], **entry} for entry in operators]
        self.put("operators.yaml", yaml.safe_dump({"operators": entries}))


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    """The metadata of an operator's call."""
    return (("authorization", f"Bearer {TOKENS[name]}"),)


def said(name: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call in development mode."""
    return (("x-sidestep-actor", name),)
