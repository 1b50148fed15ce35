"""A file in MaxMind's DB format (version 2.0), as small as can be: places of IPv4 networks."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

_MARKER = b"\xab\xcd\xefMaxMind.com"
_MAP, _TEXT, _DOUBLE, _UINT16, _UINT32, _UINT64, _ARRAY = 7, 2, 3, 5, 6, 9, 11


def write(path: Path, places: dict[str, tuple[float, float]]) -> None:
    """Network -> latitude and longitude."""
    nodes: list[list[Any]] = [[None, None]]
    data = b""
    for name, (latitude, longitude) in places.items():
        network = IPv4Network(name)
        bits = f"{int(network.network_address):032b}"[: network.prefixlen]
        node = 0
        for bit in bits[:-1]:
            if nodes[node][int(bit)] is None:
                nodes.append([None, None])
                nodes[node][int(bit)] = len(nodes) - 1
            node = nodes[node][int(bit)]
        nodes[node][int(bits[-1])] = ("data", len(data))
        data += _encode({"location": {"latitude": latitude, "longitude": longitude}})
    tree = b"".join(_record(child, len(nodes)) for node in nodes for child in node)
    metadata = {
        "node_count": (_UINT32, len(nodes)),
        "record_size": (_UINT16, 24),
        "ip_version": (_UINT16, 4),
        "database_type": "Places",
        "languages": [],
        "binary_format_major_version": (_UINT16, 2),
        "binary_format_minor_version": (_UINT16, 0),
        "build_epoch": (_UINT64, 1),
        "description": {},
    }
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(tree + bytes(16) + data + _MARKER + _encode(metadata))
    fresh.replace(path)


def _record(child: Any, count: int) -> bytes:
    if child is None:
        number = count
    elif isinstance(child, tuple):
        number = count + 16 + child[1]
    else:
        number = child
    return struct.pack(">I", number)[1:]


def _encode(value: Any) -> bytes:
    if isinstance(value, dict):
        return _control(_MAP, len(value)) + b"".join(_encode(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return _control(_ARRAY, len(value)) + b"".join(map(_encode, value))
    if isinstance(value, str):
        return _control(_TEXT, len(value.encode())) + value.encode()
    if isinstance(value, float):
        return _control(_DOUBLE, 8) + struct.pack(">d", value)
    kind, number = value
    content = number.to_bytes(8, "big").lstrip(b"\0")
    return _control(kind, len(content)) + content


def _control(kind: int, size: int) -> bytes:
    assert size < 29
    return bytes([kind << 5 | size]) if kind < 8 else bytes([size, kind - 7])
