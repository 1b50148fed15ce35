"""Files that belong together, such as a key and its certificate: read as one, and kept until all of the next ones can be used.

Others replace them while we run, one after another or by a link (cert-manager's and Kubernetes' `..data`, SPIFFE's SVID
files). What is found half-written, or does not fit together, changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

from engine.errors import SidestepError
from engine.watched import WatchedFiles

MAX_BYTES: Final = 1 << 20

_LOG = logging.getLogger(__name__)


class KeptFilesError(SidestepError):
    """A file cannot be read, or the files do not fit together. The message names setting and file, and nothing they hold."""


class KeptFiles:
    """The contents of some files by the settings that name them. `check` raises KeptFilesError for contents that cannot be used.

    May be used by several threads.
    """

    def __init__(self, paths: Mapping[str, str], check: Callable[[Mapping[str, bytes]], None]) -> None:
        """Reads the files. Raises KeptFilesError: at the start there is nothing to keep."""
        self._paths = dict(paths)
        self._check = check
        self._lock = threading.Lock()
        self._problem = ""
        self._files = WatchedFiles()
        self._contents = self._read(self._files)
        self._generation = 0

    @property
    def contents(self) -> Mapping[str, bytes]:
        """What is in use."""
        return self._contents

    @property
    def generation(self) -> int:
        """Grows with every change of what is in use."""
        return self._generation

    @property
    def problem(self) -> str:
        """Why the files as they are now cannot be used; empty: they are in use."""
        return self._problem

    def look(self) -> bool:
        """Reads the files again if they have changed. Whether other contents are in use from here on."""
        with self._lock:
            if not self._files.changed():
                return False
            self._files = files = WatchedFiles()
            try:
                contents = self._read(files)
            except KeptFilesError as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    _LOG.error("%s; what was read before stays in use", error)
                return False
            self._problem = ""
            if contents == self._contents:
                return False
            self._contents = contents
            self._generation += 1
            _LOG.info("%s: read anew", ", ".join(self._paths))
            return True

    def _read(self, files: WatchedFiles) -> dict[str, bytes]:
        contents = {}
        for setting, path in self._paths.items():
            try:
                found = files.read(path, MAX_BYTES)
            except OSError as error:
                raise KeptFilesError(f"{setting}: {path}: {error.strerror or error}") from None
            if found is None:
                raise KeptFilesError(f"{setting}: {path}: no such file")
            contents[setting] = found.data
        self._check(contents)
        return contents
