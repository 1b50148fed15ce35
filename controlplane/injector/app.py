"""Program `sidestep-injector`: the webhook that gives pods their sidecar, over TLS; health and metrics have their own port."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import uvicorn

from controlplane.injector.inject import Outcome, Rules
from controlplane.injector.review import answer
from controlplane.injector.template import MAX_BYTES, Template, TemplateError, read_template
from engine import logs
from engine.errors import InvalidInputError, SidestepError
from engine.watched import WatchedFiles

_LOG = logging.getLogger(__name__)

MAX_REVIEW_BYTES: Final = 6 << 20
"""A review holds a pod, which etcd limits to 1.5 MiB, at most twice, and a little more."""
LOOK_EVERY_S: Final = 1.0
_DRAIN_S: Final = 5
_RESULTS: Final = ("injected", "left_alone", "refused", "malformed")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Options(NamedTuple):
    """What the program is told."""

    listen: str
    http_listen: str
    tls_cert: str
    tls_key: str
    template: str
    rules: Rules


class Injector:
    """Answers reviews by the newest template and certificate that could be used. For one event loop."""

    def __init__(self, options: Options) -> None:
        """Reads template and certificate. Raises TemplateError: at the start there is nothing to go on with."""
        self._options = options
        self._files = WatchedFiles()
        self._problem = ""
        self.results = Counter(dict.fromkeys(_RESULTS, 0))
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._template = self._read(self._files)

    async def follow(self) -> None:
        """Reads what has changed until cancelled; what cannot be used changes nothing."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if not await asyncio.to_thread(self._files.changed):
                continue
            files = WatchedFiles()
            try:
                self._template = self._read(files)
            except TemplateError as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    _LOG.error("%s; going on with what was read before", error)
            else:
                self._problem = ""
                _LOG.info("template and certificate read again")
            self._files = files

    async def webhook(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """ASGI: POST /inject."""
        if scope["type"] != "http":
            return
        if scope["path"] != "/inject":
            await _reply(send, 404, b"not found\n")
        elif scope["method"] != "POST":
            await _reply(send, 405, b"POST a review\n")
        else:
            await self._review(receive, send)

    async def health(self, scope: dict[str, Any], _receive: Receive, send: Send) -> None:
        """ASGI: GET /healthz, /readyz, /metrics."""
        if scope["type"] != "http":
            return
        if scope["path"] in ("/healthz", "/readyz"):
            await _reply(send, 200, b'{"ok": true}\n', "application/json")
        elif scope["path"] == "/metrics":
            await _reply(send, 200, self._metrics().encode(), "text/plain; version=0.0.4")
        else:
            await _reply(send, 404, b"not found\n")

    async def _review(self, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            self.results["malformed"] += 1
            await _reply(send, 413, f"more than {MAX_REVIEW_BYTES} bytes\n".encode())
            return
        try:
            encoded, outcome = answer(body, self._template, self._options.rules)
        except InvalidInputError as error:
            self.results["malformed"] += 1
            await _reply(send, 400, f"{error.field}: {error.problem}\n".encode())
            return
        self.results[_result(outcome)] += 1
        await _reply(send, 200, encoded, "application/json")

    def _metrics(self) -> str:
        lines = [
            "# HELP sidestep_injector_reviews_total Reviews of pods, by what became of them.",
            "# TYPE sidestep_injector_reviews_total counter",
            *(f'sidestep_injector_reviews_total{{result="{name}"}} {count}' for name, count in self.results.items()),
            "# HELP sidestep_injector_unusable Whether template or certificate cannot be used as they are now.",
            "# TYPE sidestep_injector_unusable gauge",
            f"sidestep_injector_unusable {int(bool(self._problem))}",
        ]
        return "\n".join(lines) + "\n"

    def _read(self, files: WatchedFiles) -> Template:
        template = read_template(self._options.template, files)
        for path in (self._options.tls_cert, self._options.tls_key):
            try:
                if files.read(path, MAX_BYTES) is None:
                    raise TemplateError(f"{path}: there is no such file")
            except OSError as error:
                raise TemplateError(f"{path}: {error}") from None
        try:
            # Tried apart: a pair that does not fit must not replace one that does.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._options.tls_cert, self._options.tls_key)
            self.tls.load_cert_chain(self._options.tls_cert, self._options.tls_key)
        except (ssl.SSLError, OSError) as error:
            raise TemplateError(f"{self._options.tls_cert}, {self._options.tls_key}: {error}") from None
        return template


@asynccontextmanager
async def injector(options: Options) -> AsyncIterator[tuple[str, str]]:
    """Runs an injector; gives the addresses of webhook and health. Raises TemplateError, or OSError for an address."""
    running = Injector(options)
    webhook = _Server(running.webhook, options.listen, running.tls)
    health = _Server(running.health, options.http_listen, None)
    following = asyncio.create_task(running.follow())
    try:
        async with webhook.serving() as webhook_address, health.serving() as health_address:
            yield webhook_address, health_address
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def main() -> None:
    """Serves until SIGTERM or SIGINT. Exit code 2: wrong options; 1: could not start."""
    options, level, form = _options()
    logs.configure(level, form, "injector")
    try:
        asyncio.run(_serve(options))
    except (SidestepError, OSError) as error:
        sys.stderr.write(f"sidestep-injector: {error}\n")
        sys.exit(1)


async def _serve(options: Options) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with injector(options) as (webhook, health):
        sys.stdout.write(f"ready webhook={webhook} http={health}\n")
        sys.stdout.flush()
        await stopping.wait()


class _Server(uvicorn.Server):
    """One uvicorn server in a loop that others run in as well."""

    def __init__(self, app: Any, listen: str, tls: ssl.SSLContext | None) -> None:
        host, _, port = listen.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._up = asyncio.Event()
        # fmt: off
        config = uvicorn.Config(
            app, interface="asgi3", lifespan="off", http="h11", ws="none", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=60, timeout_graceful_shutdown=_DRAIN_S,
        )
        # fmt: on
        config.load()
        # uvicorn would make a context of files; ours can be given new ones while it serves.
        config.ssl = tls
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: signals are the program's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As inherited, and told."""
        await super().startup(sockets)
        self._up.set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serves until left, and then answers what it has begun. Raises OSError."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.create_server((self._host, self._port), family=family, backlog=2048)
        task = asyncio.create_task(self.serve([listening]))
        try:
            await self._up.wait()
            yield f"{self._host}:{listening.getsockname()[1]}"
        finally:
            self.should_exit = True
            await task
            listening.close()


async def _body(receive: Receive) -> bytes | None:
    """A request's body; what came of it if the client went away; None if it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_REVIEW_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


async def _reply(send: Send, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _result(outcome: Outcome) -> str:
    if outcome.refused:
        return "refused"
    return "left_alone" if outcome.pod is None else "injected"


def _options() -> tuple[Options, str, Any]:
    parser = argparse.ArgumentParser(prog="sidestep-injector", description="The webhook that gives pods their sidecar.")
    parser.add_argument("--version", action="version", version=version("sidestep"))
    parser.add_argument(
        "--listen", default="127.0.0.1:9443", type=_address, help="the webhook (default: 127.0.0.1:9443)"
    )
    parser.add_argument(
        "--http-listen", default="127.0.0.1:9188", type=_address, help="health and metrics (default: 127.0.0.1:9188)"
    )
    parser.add_argument("--tls-cert", required=True, help="certificate chain in PEM; read again when it changes")
    parser.add_argument("--tls-key", required=True, help="its private key in PEM")
    parser.add_argument("--template", required=True, help="what is put into pods (YAML); read again when it changes")
    parser.add_argument("--exclude-namespace", action="append", default=[], help="leave a namespace alone (repeatable)")
    parser.add_argument("--skip-jobs", action="store_true", help="leave pods of Jobs alone")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    parser.add_argument("--log-format", default="json", choices=("json", "text"))
    given = parser.parse_args()
    rules = Rules(frozenset({"kube-system", *given.exclude_namespace}), given.skip_jobs)
    options = Options(given.listen, given.http_listen, given.tls_cert, given.tls_key, given.template, rules)
    return options, given.log_level, given.log_format


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


if __name__ == "__main__":
    main()
