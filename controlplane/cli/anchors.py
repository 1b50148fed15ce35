"""Anchors: what the control plane was told of chains, from itself or as `sidestep sidecars audit -o json` saved it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from google.protobuf.json_format import ParseDict, ParseError
from sidestep.v1 import admin_pb2, report_pb2

from controlplane.cli.audit import list_anchors, list_chains
from controlplane.cli.client import Client
from controlplane.cli.failures import Failure

Key = tuple[str, str]


class Known(NamedTuple):
    """A chain as last reported, and pairs of (records, head): after so many records it had this hash."""

    chain: report_pb2.JournalChain
    anchors: tuple[tuple[int, bytes], ...]


class Anchors(Protocol):
    """What is known of chains, by (sidecar, chain)."""

    def __iter__(self) -> Iterator[Key]:
        """All chains."""

    def find(self, key: Key) -> Known | None:
        """A chain; None if nothing was reported of it. Raises Failure."""


class ServerAnchors:
    """The control plane's. The chains are those of the time it was made; a chain's anchors are fetched when asked for.

    `since`: chains that were not reported since are not told of among all; found they are all the same. Raises Failure if
    nobody answers.
    """

    def __init__(self, client: Client, since: float | None) -> None:
        self._client = client
        self._chains = {(status.sidecar, status.chain.chain): status for status in list_chains(client)}
        self._since_ns = 0 if since is None else int(since * 1e9)
        self._found: dict[Key, Known] = {}

    def __iter__(self) -> Iterator[Key]:
        for key, status in self._chains.items():
            if status.last_report_time.ToNanoseconds() >= self._since_ns:
                yield key

    def find(self, key: Key) -> Known | None:
        """A chain; None if nothing was reported of it. Raises Failure."""
        status = self._chains.get(key)
        if status is None:
            return None
        if key not in self._found:
            # Those up to the state at hand: the list is fetched later.
            anchors = (each for each in list_anchors(self._client, *key) if each.records < status.chain.records)
            self._found[key] = _known(status.chain, ((each.records, each.head) for each in anchors))
        return self._found[key]


class SavedAnchors:
    """Those in a file that `sidestep sidecars audit -o json` wrote, with --anchors or without."""

    def __init__(self, path: Path) -> None:
        """Raises Failure if the file is not what it should be."""
        try:
            chains = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise Failure(f"{path}: {error.strerror}") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise Failure(f"{path}: not JSON: {error}") from None
        if not isinstance(chains, list):
            raise _not_an_audit(path)
        self._chains: dict[Key, Known] = {}
        for each in chains:
            try:
                chain = ParseDict(each["chain"], report_pb2.JournalChain())
                saved = [ParseDict(anchor, admin_pb2.JournalAnchor()) for anchor in each.get("anchors", ())]
                key = (str(each["sidecar"]), chain.chain)
            except (ParseError, KeyError, TypeError, AttributeError):
                raise _not_an_audit(path) from None
            self._chains[key] = _known(chain, ((anchor.records, anchor.head) for anchor in saved))

    def __iter__(self) -> Iterator[Key]:
        return iter(self._chains)

    def find(self, key: Key) -> Known | None:
        """A chain; None if it is not in the file."""
        return self._chains.get(key)


def _known(chain: report_pb2.JournalChain, anchors: Iterable[tuple[int, bytes]]) -> Known:
    newest = [(chain.records, chain.head)] if chain.records else []
    return Known(chain, tuple({*anchors, *newest}))


def _not_an_audit(path: Path) -> Failure:
    return Failure(f"{path}: is not what `sidestep sidecars audit -o json` writes")
