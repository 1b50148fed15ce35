"""What the control plane has counted of connections and refusals since its start: closed sets of labels, for metrics to
export."""

from __future__ import annotations

import threading
from collections import OrderedDict
from enum import StrEnum
from typing import Final

_MAX_PEERS: Final = 65_536


class Refused(StrEnum):
    """Why a call was refused before it did anything."""

    NO_CERTIFICATE = "no_certificate"
    UNMAPPED = "unmapped_certificate"
    REVOKED = "revoked_certificate"
    EXPIRED = "expired_certificate"
    NAME_TAKEN = "sidecar_name_taken"
    OUT_OF_SCOPE = "tenant_out_of_scope"
    NO_TOKEN = "no_token"  # noqa: S105 - a label
    UNKNOWN_TOKEN = "unknown_token"  # noqa: S105
    TOKEN_ALGORITHM = "token_algorithm"  # noqa: S105
    TOKEN_KEY = "token_key"  # noqa: S105
    TOKEN_SIGNATURE = "token_signature"  # noqa: S105
    TOKEN_ISSUER = "token_issuer"  # noqa: S105
    TOKEN_AUDIENCE = "token_audience"  # noqa: S105
    TOKEN_TIME = "token_time"  # noqa: S105
    TOKEN_MALFORMED = "token_malformed"  # noqa: S105
    NO_ROLE = "no_role"
    NO_PERMISSION = "no_permission"
    OVERLOADED = "overloaded"
    NO_HELLO = "no_hello"
    MESSAGE = "malformed_message"


class Counters:
    """Counts; each only rises. May be used by several threads.

    `handshakes`: TLS connections that began one. `connections`: those of them that made a call. A handshake that TLS
    itself refuses (no certificate, an expired one, a foreign authority, no answer in time) is in the first and never in
    the second; gRPC does not tell of it in any other way.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused = dict.fromkeys(Refused, 0)
        self._ended = dict.fromkeys(Refused, 0)
        self._peers: OrderedDict[str, None] = OrderedDict()
        self.handshakes = 0
        self.connections = 0

    def refuse(self, why: Refused) -> None:
        """A call was refused."""
        with self._lock:
            self._refused[why] += 1

    def end(self, why: Refused) -> None:
        """A running stream was ended."""
        with self._lock:
            self._ended[why] += 1

    def handshake(self) -> None:
        """A TLS connection begins."""
        with self._lock:
            self.handshakes += 1

    def call(self, peer: str) -> None:
        """A call came in on the connection of `peer`, an address with its port."""
        with self._lock:
            known = peer in self._peers
            self._peers[peer] = None
            self._peers.move_to_end(peer)
            if known:
                return
            self.connections += 1
            if len(self._peers) > _MAX_PEERS:
                self._peers.popitem(last=False)

    def refused(self) -> dict[str, int]:
        """Refused calls, by reason; every reason is there."""
        with self._lock:
            return {str(why): count for why, count in self._refused.items()}

    def ended(self) -> dict[str, int]:
        """Streams ended because their certificate no longer holds, by reason."""
        with self._lock:
            return {str(why): count for why, count in self._ended.items()}
