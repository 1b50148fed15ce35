"""OpenTelemetry's own environment variables, as its specification (1.x) defines them, as far as the sidecar uses them.

OTEL_EXPORTER_OTLP_PROTOCOL       grpc or http/protobuf
OTEL_EXPORTER_OTLP_ENDPOINT       http://localhost:4317 (gRPC), http://localhost:4318 (HTTP; /v1/traces or /v1/metrics is added)
OTEL_EXPORTER_OTLP_INSECURE       false; only for a gRPC endpoint without scheme
OTEL_EXPORTER_OTLP_HEADERS        key=value,key=value; percent-encoded
OTEL_EXPORTER_OTLP_TIMEOUT        milliseconds; 10000
OTEL_EXPORTER_OTLP_COMPRESSION    none or gzip
OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_KEY, _CLIENT_CERTIFICATE    PEM files
OTEL_METRICS_EXPORTER             otlp or none
OTEL_METRIC_EXPORT_INTERVAL       milliseconds; 60000
OTEL_SDK_DISABLED                 true: no metrics are sent. Decisions are an audit trail and are shipped all the same
OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES

Each OTEL_EXPORTER_OTLP_ variable has variants for one signal, OTEL_EXPORTER_OTLP_TRACES_ and _METRICS_, which win; an endpoint
for HTTP is then the whole URL. Empty counts as unset.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from engine.errors import InvalidInputError

Signal = Literal["traces", "metrics"]
"""What is exported."""

_EXPORTER = "OTEL_EXPORTER_OTLP_"
_GRPC_PORT = 4317
_HTTP_ENDPOINT = "http://localhost:4318"
_KEY = re.compile(r"[0-9a-z_.-]+")
# What the protocols set themselves.
_RESERVED = re.compile(r"content-.*|transfer-encoding|accept-encoding|connection|host|te|grpc-.*|.*-bin")


class Otlp(NamedTuple):
    """How to reach the collector with one signal."""

    # host:port for gRPC, the whole URL for HTTP.
    endpoint: str = f"localhost:{_GRPC_PORT}"
    insecure: bool = True
    # Names in lower case.
    headers: tuple[tuple[str, str], ...] = ()
    # Of one attempt.
    timeout_s: float = 10.0
    gzip: bool = False
    # PEM: whom to trust (None: the roots of gRPC's library, or the system's for HTTP), and who we are.
    certificate: Path | None = None
    client_key: Path | None = None
    client_certificate: Path | None = None
    protocol: Literal["grpc", "http/protobuf"] = "grpc"

    @property
    def files(self) -> tuple[Path, ...]:
        """The TLS files that are in use."""
        paths = () if self.insecure else (self.certificate, self.client_key, self.client_certificate)
        return tuple(path for path in paths if path is not None)


class Metrics(NamedTuple):
    """Whether and how often metrics are sent."""

    exporter: Literal["otlp", "none"] = "otlp"
    interval_s: float = 60.0


class _Variable(NamedTuple):
    """A variable that is set; an empty `text`: that is not."""

    key: str
    text: str
    # It is the variant for the signal.
    own: bool = False


def parse_otlp(environment: Mapping[str, str], signal: Signal = "traces") -> Otlp:
    """Reads the exporter's variables for one signal. Raises InvalidInputError naming the variable."""

    def find(name: str) -> _Variable:
        own = f"{_EXPORTER}{signal.upper()}_{name}"
        for key in (own, _EXPORTER + name):
            if text := environment.get(key, "").strip():
                return _Variable(key, text, key == own)
        return _Variable(_EXPORTER + name, "")

    def pem(name: str) -> Path | None:
        key, text, _ = find(name)
        if text and not Path(text).is_file():
            raise InvalidInputError(key, f"{text!r} is not a file")
        return Path(text) if text else None

    protocol = _protocol(find("PROTOCOL"))
    if protocol == "grpc":
        endpoint, insecure = _grpc_endpoint(find("ENDPOINT"), find("INSECURE").text.lower() == "true")
    else:
        endpoint, insecure = _http_endpoint(find("ENDPOINT"), signal)
    compression = find("COMPRESSION")
    if compression.text not in ("", "none", "gzip"):
        raise InvalidInputError(compression.key, f"{compression.text!r} is neither none nor gzip")
    otlp = Otlp(
        endpoint=endpoint,
        insecure=insecure,
        headers=tuple(_headers(find("HEADERS"))),
        timeout_s=_milliseconds(find("TIMEOUT"), Otlp().timeout_s),
        gzip=compression.text == "gzip",
        certificate=pem("CERTIFICATE"),
        client_key=pem("CLIENT_KEY"),
        client_certificate=pem("CLIENT_CERTIFICATE"),
        protocol=protocol,
    )
    if otlp.files:
        try:
            tls_context(otlp)
        except InvalidInputError as error:
            raise InvalidInputError(find(error.field).key, error.problem) from None
    return otlp


def parse_metrics(environment: Mapping[str, str]) -> Metrics:
    """Whether and how often metrics are to be sent. Raises InvalidInputError naming the variable."""
    exporter = environment.get("OTEL_METRICS_EXPORTER", "").strip() or "otlp"
    if exporter not in ("otlp", "none"):
        raise InvalidInputError("OTEL_METRICS_EXPORTER", f"{exporter!r} is neither otlp nor none")
    key = "OTEL_METRIC_EXPORT_INTERVAL"
    interval_s = _milliseconds(_Variable(key, environment.get(key, "").strip()), Metrics().interval_s)
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return Metrics("none", interval_s)
    return Metrics("otlp", interval_s)


def parse_resource(environment: Mapping[str, str]) -> dict[str, str]:
    """Resource attributes the environment names, `service.name` in any case. Raises InvalidInputError naming the variable."""
    key = "OTEL_RESOURCE_ATTRIBUTES"
    attributes = dict(_pairs(key, environment.get(key, "")))
    name = environment.get("OTEL_SERVICE_NAME", "").strip() or attributes.get("service.name")
    attributes["service.name"] = name or "sidestep"
    for attribute, value in attributes.items():
        if not (attribute + value).isprintable():  # undecodable bytes of the environment, too
            raise InvalidInputError(key, f"{attribute!r}: names and values must be printable text")
    return attributes


def tls_context(otlp: Otlp) -> ssl.SSLContext:
    """TLS 1.2 or newer, with the host name checked. Raises InvalidInputError naming the setting: CERTIFICATE, CLIENT_KEY, ..."""
    try:
        context = ssl.create_default_context(cafile=otlp.certificate)  # None: the system's roots
    except OSError as error:  # ssl.SSLError is one
        raise InvalidInputError("CERTIFICATE", f"{otlp.certificate}: no certificates to trust: {error}") from None
    if otlp.client_key is None and otlp.client_certificate is None:
        return context
    if otlp.client_key is None or otlp.client_certificate is None:
        missing = "CLIENT_KEY" if otlp.client_key is None else "CLIENT_CERTIFICATE"
        raise InvalidInputError(missing, "a client's key and certificate go together")
    try:
        # The password makes an encrypted key an error, and no question on a terminal.
        context.load_cert_chain(otlp.client_certificate, otlp.client_key, password="")
    except (OSError, ValueError) as error:
        problem = f"{otlp.client_certificate} and its key {otlp.client_key} cannot be used: {error}"
        raise InvalidInputError("CLIENT_CERTIFICATE", problem) from None
    return context


def _protocol(variable: _Variable) -> Literal["grpc", "http/protobuf"]:
    match variable.text:
        case "" | "grpc":
            return "grpc"
        case "http/protobuf":
            return "http/protobuf"
        case other:
            raise InvalidInputError(variable.key, f"{other!r} is not spoken here, only grpc and http/protobuf")


def _grpc_endpoint(variable: _Variable, insecure: bool) -> tuple[str, bool]:
    """host:port, and whether in plain text."""
    key, text, _ = variable
    if not text:
        return Otlp().endpoint, Otlp().insecure
    scheme, has_scheme, rest = text.partition("://")
    if has_scheme:
        if scheme not in ("http", "https"):
            raise InvalidInputError(key, f"{text!r}: the scheme must be http or https")
        insecure = scheme == "http"
    try:
        parts = urlsplit(f"//{rest if has_scheme else text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(key, f"{text!r}: {error}") from None
    if not host or parts.username is not None or parts.path not in ("", "/") or parts.query or port == 0:
        raise InvalidInputError(key, f"{text!r} is not http://host:port, as protocol grpc needs it")
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{_GRPC_PORT if port is None else port}", insecure


def _http_endpoint(variable: _Variable, signal: Signal) -> tuple[str, bool]:
    """The URL to post to, and whether in plain text."""
    key, text, own = variable
    text = text or _HTTP_ENDPOINT
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(key, f"not a URL: {error}") from None
    # A query may hold a credential: URLs are not repeated in messages.
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise InvalidInputError(key, "is not http://host:port/path or https://..., as protocol http/protobuf needs it")
    if parts.username is not None or parts.fragment or not (text.isascii() and text.isprintable()) or " " in text:
        raise InvalidInputError(key, "must be a plain URL: no user, no fragment, no other characters than URLs have")
    if own:
        return text, parts.scheme == "http"
    if parts.query:
        raise InvalidInputError(key, f"a query is only possible in {_EXPORTER}{signal.upper()}_ENDPOINT")
    return f"{text.rstrip('/')}/v1/{signal}", parts.scheme == "http"


def _milliseconds(variable: _Variable, default_s: float) -> float:
    key, text, _ = variable
    if not text:
        return default_s
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 24 * 3_600_000:
        raise InvalidInputError(key, f"{text!r} is not a number of milliseconds, at most a day")
    return int(text) / 1000


def _headers(variable: _Variable) -> list[tuple[str, str]]:
    headers = [(name.lower(), value.strip()) for name, value in _pairs(variable.key, variable.text)]
    for name, value in headers:
        if not _KEY.fullmatch(name) or not value.isascii() or not value.isprintable():
            # Values may be credentials: they are not repeated in messages.
            raise InvalidInputError(variable.key, f"{name!r} cannot be sent as a header")
        if _RESERVED.fullmatch(name):
            raise InvalidInputError(variable.key, f"{name!r} is set by the protocol")
    return headers


def _pairs(key: str, text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise InvalidInputError(key, "must be a list key=value,key=value")
        pairs.append((unquote(name.strip()), unquote(value.strip())))
    return pairs
