"""An HTTP/2 server that speaks no gRPC: it answers every request with one fixed page, as a proxy on the way does.

Just enough of RFC 9113 for one client: no flow control is needed for what is sent here, header fields are sent as literals.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

_PREFACE_BYTES: Final = 24
_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_ACK = _END_STREAM = 1
_END_HEADERS = 4


@asynccontextmanager
async def page_server(
    status: int, body: bytes, content_type: str = "text/html", trailers: tuple[tuple[str, str], ...] = ()
) -> AsyncIterator[str]:
    """Serves inside the block; yields host:port."""
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(_PREFACE_BYTES)
        writer.write(_frame(_SETTINGS))
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                writer.write(_frame(kind, _ACK, payload=payload if kind == _PING else b""))
            elif kind == _DATA and flags & _END_STREAM:
                fields = ((":status", str(status)), ("content-type", content_type))
                writer.write(_frame(_HEADERS, _END_HEADERS, stream, _literals(fields)))
                writer.write(_frame(_DATA, 0 if trailers else _END_STREAM, stream, body))
                if trailers:
                    writer.write(_frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _literals(trailers)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literals(fields: tuple[tuple[str, str], ...]) -> bytes:
    """Header fields without indexing and without compression (RFC 7541, 6.2.2)."""
    return b"".join(
        bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode() for name, value in fields
    )
