"""OpenTelemetry's own environment variables, as its specification defines them, as far as the shipper uses them.

OTEL_EXPORTER_OTLP_[TRACES_]ENDPOINT              http://localhost:4317
OTEL_EXPORTER_OTLP_[TRACES_]INSECURE              false; only for an endpoint without scheme
OTEL_EXPORTER_OTLP_[TRACES_]HEADERS               key=value,key=value; percent-encoded
OTEL_EXPORTER_OTLP_[TRACES_]TIMEOUT               milliseconds; 10000
OTEL_EXPORTER_OTLP_[TRACES_]COMPRESSION           none or gzip
OTEL_EXPORTER_OTLP_[TRACES_]PROTOCOL              grpc is the only one spoken
OTEL_EXPORTER_OTLP_[TRACES_]CERTIFICATE, _CLIENT_KEY, _CLIENT_CERTIFICATE    PEM files
OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from engine.errors import InvalidInputError

_EXPORTER = "OTEL_EXPORTER_OTLP_"
_DEFAULT_PORT = 4317
_KEY = re.compile(r"[0-9a-z_.-]+")


class Otlp(NamedTuple):
    """How to reach the collector."""

    # host:port
    endpoint: str = f"localhost:{_DEFAULT_PORT}"
    insecure: bool = True
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 10.0
    gzip: bool = False
    certificate: Path | None = None
    client_key: Path | None = None
    client_certificate: Path | None = None


def parse_otlp(environment: Mapping[str, str]) -> Otlp:
    """Reads the exporter's variables. Raises InvalidInputError naming the variable."""

    def find(name: str) -> tuple[str, str]:
        for key in (f"{_EXPORTER}TRACES_{name}", _EXPORTER + name):
            if environment.get(key, "").strip():
                return key, environment[key].strip()
        return _EXPORTER + name, ""

    def pem(name: str) -> Path | None:
        key, text = find(name)
        if text and not Path(text).is_file():
            raise InvalidInputError(key, f"{text!r} is not a file")
        return Path(text) if text else None

    endpoint, insecure = _endpoint(*find("ENDPOINT"), find("INSECURE")[1].lower() == "true")
    key, protocol = find("PROTOCOL")
    if protocol not in ("", "grpc"):
        raise InvalidInputError(key, f"{protocol!r} is not spoken here, only grpc")
    key, compression = find("COMPRESSION")
    if compression not in ("", "none", "gzip"):
        raise InvalidInputError(key, f"{compression!r} is neither none nor gzip")
    key, timeout = find("TIMEOUT")
    if timeout and (not timeout.isascii() or not timeout.isdigit() or int(timeout) == 0):
        raise InvalidInputError(key, f"{timeout!r} is not a number of milliseconds")
    return Otlp(
        endpoint=endpoint,
        insecure=insecure,
        headers=tuple(_headers(*find("HEADERS"))),
        timeout_s=int(timeout) / 1000 if timeout else 10.0,
        gzip=compression == "gzip",
        certificate=pem("CERTIFICATE"),
        client_key=pem("CLIENT_KEY"),
        client_certificate=pem("CLIENT_CERTIFICATE"),
    )


def parse_resource(environment: Mapping[str, str]) -> dict[str, str]:
    """Resource attributes, `service.name` among them. Raises InvalidInputError naming the variable."""
    attributes = dict(_pairs("OTEL_RESOURCE_ATTRIBUTES", environment.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    name = environment.get("OTEL_SERVICE_NAME") or attributes.get("service.name")
    return attributes | {"service.name": name or "sidestep"}


def _endpoint(key: str, text: str, insecure: bool) -> tuple[str, bool]:
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
    if not host or parts.username is not None or parts.path not in ("", "/") or parts.query:
        raise InvalidInputError(key, f"{text!r} is not http://host:port")
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{_DEFAULT_PORT if port is None else port}", insecure


def _headers(key: str, text: str) -> list[tuple[str, str]]:
    headers = [(name.lower(), value) for name, value in _pairs(key, text)]
    for name, value in headers:
        if not _KEY.fullmatch(name) or not value.isascii() or not value.isprintable():
            # Values may be credentials: they are not repeated in messages.
            raise InvalidInputError(key, f"{name!r} cannot be sent as gRPC metadata")
    return headers


def _pairs(key: str, text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise InvalidInputError(key, "must be a list key=value,key=value")
        pairs.append((unquote(name.strip()), unquote(value.strip())))
    return pairs
