"""Where the sidecar listens: `host:port` over TCP, or `unix:///path`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from sidecar.page import MAX_PORTS

# sockaddr_un.sun_path, its final zero included.
_MAX_SOCKET_PATH = 108


class Address(NamedTuple):
    """A TCP address. Port 0: any free one."""

    host: str
    port: int

    @property
    def local(self) -> bool:
        """Whether it can only be reached from this host."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listener(NamedTuple):
    """One of the two."""

    address: Address | None = None
    path: str = ""

    @property
    def local(self) -> bool:
        """Whether it can only be reached from this host."""
        return self.address is None or self.address.local

    def with_port(self, port: int) -> Listener:
        """The same with `port` in place of port 0, once it is known."""
        if self.address is None or self.address.port:
            return self
        return self._replace(address=self.address._replace(port=port))

    def for_worker(self, index: int) -> Listener:
        """What worker `index` listens on: workers share a TCP port and have a Unix socket each (`sidecar-1.sock`)."""
        if self.address is not None or index == 0:
            return self
        path = PurePosixPath(self.path)
        return self._replace(path=str(path.with_name(f"{path.stem}-{index}{path.suffix}")))

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.address is None else str(self.address)


def parse_address(value: object) -> Address:
    """Reads `host:port` or `[v6]:port`. Raises ValueError."""
    if isinstance(value, Address):
        return value
    host, colon, port = str(value).strip().rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is not host:port")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    elif ":" in host:
        raise ValueError(f"{value!r}: an IPv6 address is written [::1]:9191")
    return Address(host, int(port))


def parse_listeners(value: object) -> tuple[Listener, ...]:
    """Reads a comma-separated list (or a list) of listeners. Raises ValueError."""
    if isinstance(value, str):
        parts: list[object] = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, Iterable):
        parts = list(value)
    else:
        raise ValueError(f"{value!r} is not a list of listeners")
    listeners = tuple(part if isinstance(part, Listener) else _listener(str(part)) for part in parts)
    if not 1 <= len(listeners) <= MAX_PORTS:
        raise ValueError(f"1 to {MAX_PORTS} listeners, not {len(listeners)}")
    fixed = [listener for listener in listeners if listener.address is None or listener.address.port]
    if len(set(fixed)) < len(fixed):
        raise ValueError("a listener is named twice")
    return listeners


def _listener(text: str) -> Listener:
    if not text.startswith("unix:"):
        return Listener(address=parse_address(text))
    path = text.removeprefix("unix:").removeprefix("//")
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError(f"{text!r}: a Unix socket is written unix:///path/to.sock")
    if len(path.encode()) + len("-00") >= _MAX_SOCKET_PATH:
        raise ValueError(f"{text!r}: the path is too long for a Unix socket")
    return Listener(path=path)
