"""`resource.json`: whose journal a folder is. The attributes of the OTLP resource, beside the segments, wherever they go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from sidecar.journal.cursor import replace_file

RESOURCE_FILE = "resource.json"
INSTANCE = "service.instance.id"
"""The attribute that is the sidecar's name."""


def save_resource(directory: Path, attributes: Mapping[str, str]) -> None:
    """Writes the file, if it does not say so already, durably. Makes the directory. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    if load_resource(directory) != attributes:
        replace_file(directory / RESOURCE_FILE, msgspec.json.encode(dict(attributes)) + b"\n")


def load_resource(directory: Path) -> dict[str, str] | None:
    """The attributes; None if there is no such file or it is damaged."""
    try:
        return msgspec.json.decode((directory / RESOURCE_FILE).read_bytes(), type=dict[str, str])
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
