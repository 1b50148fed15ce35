"""What following the control plane raises."""

from __future__ import annotations

from engine.errors import SidestepError


class SyncError(SidestepError):
    """The stream cannot go on: it is given up and a new one begun."""


class ProtocolError(SyncError):
    """The control plane sent what the protocol rules out."""


class SilentError(SyncError):
    """Nothing was heard for three heartbeats: the connection is half open, or the other side hangs."""


class WithheldError(SyncError):
    """The control plane is ahead, but what leads there does not come: something between keeps it, or it was lost."""
