"""Which network addresses can only be reached from this host."""

from __future__ import annotations

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether a `host:port`, `[v6]:port` or `unix:` address stays on this host. Names other than `localhost` may lead
    anywhere."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
