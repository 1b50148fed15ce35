"""Whether a sidecar's version works with this control plane's."""

from __future__ import annotations

from sidestep.v1 import admin_pb2

from engine.skew import Skew, describe, skew

_FOUND = {
    Skew.WITHIN: admin_pb2.VERSION_SKEW_UNSPECIFIED,
    Skew.OUTSIDE: admin_pb2.VERSION_SKEW_OUTSIDE,
    Skew.UNKNOWN: admin_pb2.VERSION_SKEW_UNKNOWN,
}


class Versions:
    """The declared window around one's own version, and whether it is enforced."""

    def __init__(self, own: str, window: int, *, refuse: bool) -> None:
        self._own = own
        self._window = window
        self._refuse = refuse

    def judge(self, version: str) -> tuple[str, admin_pb2.VersionSkew]:
        """Why a sidecar of this version is refused, empty if it is not; and what the list of sidecars shows."""
        found = skew(self._own, version, self._window)
        problem = ""
        if found is Skew.OUTSIDE and self._refuse:
            window = describe(self._own, self._window)
            problem = f"version {version} of the sidecar: control plane {self._own} works with {window}"
        return problem, _FOUND[found]
