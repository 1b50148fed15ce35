"""What the store raises."""

from __future__ import annotations

from engine.errors import SidestepError


class StoreError(SidestepError):
    """Any error of the store."""


class NotLoadedError(StoreError):
    """There is no generation to read: none was written yet, or the one on disk is not trusted yet."""


class UnreadableError(StoreError):
    """LMDB could not read the generation. It has been marked suspect; the writer examines it when it next opens."""


class DamagedRowError(UnreadableError):
    """A bookkeeping row is not as it was written: a flipped byte on disk or in memory. Its value must not be used."""


class LockedError(StoreError):
    """Another process holds the writer's lock on the data directory."""


class ApplyError(StoreError):
    """A change was not applied; the store still holds exactly the revision it held before."""


class GapError(ApplyError):
    """A delta does not continue the lane's cursor: revisions are missing, the epoch is newer, or nothing was loaded."""


class DigestMismatchError(ApplyError):
    """The data does not have, or would not have, the digest the control plane states."""


class UndecodableError(ApplyError):
    """Bytes that cannot be understood: not a message, not a possible key, or a record in the wrong lane."""


class StorageFullError(ApplyError):
    """The store reached its size limit, or the volume is full."""


class RefusedError(ApplyError):
    """A record this version will not serve, for example a policy it cannot compile.

    `code` is one of the codes of `sidestep.v1.Refusal`, `detail` is for the operator.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
