"""The least a fan-out can be: grpc.aio streams that get each message, and whose empty answers are read.

`python -m bench.fanout`; a line `N SIZE` on standard input publishes N messages of SIZE bytes, one after another.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

from bench.crowd import BARE


class Fanout:
    """All streams."""

    def __init__(self) -> None:
        self._streams: set[asyncio.Queue[bytes]] = set()
        self._sent = 0
        self._answered = 0
        self._all = asyncio.Event()

    async def follow(self, _requests: Any, context: Any) -> None:
        await context.read()
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._streams.add(queue)
        try:
            while True:
                await context.write(await queue.get())
                await context.read()
                self._answered += 1
                if self._answered >= self._sent:
                    self._all.set()
        finally:
            self._streams.discard(queue)

    async def publish(self, number: int, size: int) -> None:
        self._all.clear()
        self._sent += len(self._streams)
        message = number.to_bytes(8, "big") + bytes(size - 8)
        for queue in self._streams:
            queue.put_nowait(message)
        await self._all.wait()


async def _serve() -> None:
    fanout = Fanout()
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    service, _, method = BARE.strip("/").partition("/")
    handler: Any = grpc.stream_stream_rpc_method_handler(fanout.follow)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    number = 0
    while line := (await asyncio.to_thread(sys.stdin.readline)).split():
        for _ in range(int(line[0])):
            number += 1
            await fanout.publish(number, int(line[1]))
        print("done", flush=True)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(_serve())
