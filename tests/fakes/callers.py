"""A callers' file and the token files it names, as Kubernetes mounts them: all changes appear at once, by another link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

TOKENS = {"payments": "payments-token-0123456789", "browsing": "browsing-token-0123456789"}
CALLERS: tuple[dict[str, Any], ...] = (
    {"name": "payments", "actions": ["payments.*"], "diagnose": True},
    {"name": "browsing", "actions": ["browse.*", "payments.transfer"], "rpcs": ["Evaluate"]},
)


class Mount:
    """A folder of files that are links into the present version of the folder. `callers` is the path for SIDESTEP_CALLERS."""

    def __init__(
        self,
        directory: Path,
        callers: Sequence[Mapping[str, Any]] = CALLERS,
        tokens: Mapping[str, str] = TOKENS,
    ) -> None:
        self._directory = directory
        self._version = 0
        self._files: dict[str, str] = {}
        self.callers = directory / "callers.yaml"
        directory.mkdir(parents=True)
        self.put(**tokens, **{"callers.yaml": self.document(callers)})

    def path(self, name: str) -> str:
        """Of a file in it."""
        return str(self._directory / name)

    def document(self, callers: Sequence[Mapping[str, Any]]) -> str:
        """A callers' file; who names no `tokens` has a file by his name."""
        named = [{"tokens": [self.path(str(caller["name"]))]} | dict(caller) for caller in callers]
        return yaml.safe_dump({"callers": named})

    def put(self, **files: str | None) -> None:
        """Replaces files, all at once; None removes one."""
        self._files = {name: text for name, text in (self._files | files).items() if text is not None}
        self._version += 1
        fresh = self._directory / f"..{self._version}"
        fresh.mkdir()
        for name, text in self._files.items():
            (fresh / name).write_text(text)
            (fresh / name).chmod(0o640)
        link = self._directory / "..data"
        former = link.resolve() if link.exists() else None
        (self._directory / "..next").symlink_to(fresh.name)
        os.replace(self._directory / "..next", link)
        for name in self._files:
            if not (self._directory / name).is_symlink():
                (self._directory / name).symlink_to(f"..data/{name}")
        if former is not None:
            shutil.rmtree(former)


def bearer(token: str) -> str:
    """The header's value."""
    return f"Bearer {token}"
