"""Settings of the sidecar, from the environment and a file with the same names. The only reader of the environment.

A setting is `SIDESTEP_` and the name of a `Config` field in capitals, without the unit `_s`. The
environment wins over the YAML file that SIDESTEP_CONFIG names. Durations are written `250ms`, `5m`, `1h30m`; sizes in
bytes, or `64KiB`, `256MiB`, `2GiB`. Unknown SIDESTEP_ names are refused, so that a typing error cannot pass for a
default. Where the collector is, OpenTelemetry's own OTEL_ variables say (specification 1.x, "OTLP exporter").
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from engine.addresses import is_loopback
from engine.durations import parse_duration
from engine.errors import InvalidInputError, SidestepError
from engine.names import check_tenant
from sidecar.listeners import Address, Listener, parse_address, parse_listeners
from sidecar.otel import Metrics, Otlp, parse_metrics, parse_otlp, parse_resource
from sidecar.page import MAX_WORKERS

PREFIX = "SIDESTEP_"
_FILE = "SIDESTEP_CONFIG"
# Settings of other programs, which may share the environment.
_OTHERS = re.compile(
    r"SIDESTEP_(CP_.*|SERVER(_CA|_CERT|_KEY)?|ADDRESS|"
    # What Kubernetes sets for a Service whose name begins with "sidestep-"; NAME_PORT is told by its value.
    r".*_SERVICE_HOST|.*_SERVICE_PORT(_.*)?|.*_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://.*")
_SIZES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_MIB = 1 << 20
_VALUE_NAME = re.compile(r"(context|resource)\.([A-Za-z_][A-Za-z0-9_.]*\*?|\*)")

DEFAULT_VALUES = ("context.amount.*", "context.asn", "context.country", "resource.type")
"""Request values that say little about a person."""


class ConfigError(SidestepError):
    """Settings that cannot be used. The message names every one of them, a line each."""


def _tenant(value: Any) -> str:
    try:
        return check_tenant(str(value))
    except InvalidInputError as error:
        raise ValueError(error.problem) from None


def _duration(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except InvalidInputError as error:
            raise ValueError(error.problem) from None
    if isinstance(value, bool | int):
        raise ValueError(f"{value} has no unit; write a duration such as 250ms, 90s or 5m")
    return value


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", value.strip())
    if match is None or match[2] not in _SIZES:
        raise ValueError(f"{value!r} is not a size such as 65536, 64KiB or 256MiB")
    return int(match[1]) * _SIZES[match[2]]


def _names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = tuple(filter(None, (part.strip() for part in value.split(","))))
    for name in names:
        if not _VALUE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a request value, such as context.amount.value or context.*")
    return names


Duration = Annotated[float, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]


class Config(BaseModel):
    """All settings, checked. Immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    # Tenant of requests that name none. Required.
    tenant: Annotated[str, BeforeValidator(_tenant)]
    # Where decisions are served.
    listen: Annotated[tuple[Listener, ...], BeforeValidator(parse_listeners)] = parse_listeners("127.0.0.1:9191")
    # The services that may call, and their tokens: see sidecar/callers.py. Unset: development mode, anyone is served.
    callers: Path | None = None
    # Serve TCP beyond this host. Nothing is encrypted there, tokens included, so only behind something that does.
    allow_non_loopback: bool = False
    # Health and metrics.
    http_listen: Annotated[Address, BeforeValidator(parse_address)] = parse_address("127.0.0.1:9192")
    control_plane: Annotated[str, BeforeValidator(lambda value: str(parse_address(value)))] = "127.0.0.1:9190"
    # The control plane's public keys: what none of them signed is not believed. Unset: development mode, whatever comes is.
    trusted_keys: Path | None = None
    # PEM files, read again when they change: the authorities of the control plane's certificate, and what the sidecar is
    # known by.
    control_plane_tls_ca: Path | None = None
    control_plane_tls_cert: Path | None = None
    control_plane_tls_key: Path | None = None
    # The name that the control plane's certificate must have, if it is another than the address's.
    control_plane_server_name: str = Field(default="", max_length=253)
    # Follow a control plane on another host in plain text. Whoever is in between could then grant themselves exemptions.
    control_plane_insecure: bool = False
    data_dir: Path = Path("/var/lib/sidestep")
    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    transport: Literal["native", "grpcio"] = "native"
    # Shown to operators of the control plane; grants nothing.
    sidecar_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=253)
    # Age of the data from which no exemption applies, and from which the top requirement does.
    soft_stale_s: Duration = Field(default=300.0, gt=0)
    hard_stale_s: Duration = Field(default=3600.0, gt=0)
    max_message_bytes: Size = Field(default=64 << 10, ge=1024, le=4 * _MIB)
    reflection: bool = False
    # In development mode, everyone may ask for an explanation. A manual for an attacker: on loopback only.
    diagnose: bool = False
    # Whether an unsynced sidecar makes the pod unready.
    ready_requires_sync: bool = False
    # From SIGTERM to the end, shipping of what is left included.
    shutdown_grace_s: Duration = Field(default=25.0, ge=1, le=3600)
    # Bytes a generation of the store may grow to; the volume must hold two, and the journal.
    store_max: Size = Field(default=4 << 30, ge=16 * _MIB)
    scrub_interval_s: Duration = Field(default=3600.0, ge=1)
    # Bytes of records that may wait for the collector, all workers together.
    journal_max: Size = Field(default=256 * _MIB, ge=_MIB)
    # `none`: records are discarded once written. Only for development.
    journal_sink: Literal["otlp", "none"] = "otlp"
    # Answer nothing that cannot be recorded, instead of exempting nobody.
    journal_strict: bool = False
    # What an appended record survives: the death of any `process`, or of the node (`disk`).
    journal_durability: Literal["process", "disk"] = "process"
    # Where records that are left when the grace period ends are copied to; unset: they stay in the data directory.
    journal_spool: Path | None = None
    # How often the control plane is told where the journal stands, while it grows.
    journal_report_interval_s: Duration = Field(default=5.0, ge=0.1, le=300)
    # How long a window is in which a worker counts what its decisions come to, for the control plane.
    usage_interval_s: Duration = Field(default=10.0, ge=0.1, le=300)
    # What decisions say of the user: a keyed hash, also the id itself, or nothing.
    telemetry_user: Literal["hash", "raw", "none"] = "hash"
    # Of the client's address: its network (/24, /48), all of it, or nothing.
    telemetry_address: Literal["truncated", "raw", "none"] = "truncated"
    # Request values that may be recorded and exported, of those that conditions read: names as in conditions, `*` at the end
    # of a name for any that begins so. What is not on the list is left out, and its decisions cannot be replayed.
    telemetry_values: Annotated[tuple[str, ...], BeforeValidator(_names)] = DEFAULT_VALUES
    # Where addresses are, for the guard `impossibleTravel`: a file in MaxMind's DB format (GeoLite2 City). Read again when it
    # changes. Unset: only places that callers state count.
    geo_file: Path | None = None
    # Subjects, fingerprints and grants that the guards of one worker remember, each; and as many keys of each rate limit.
    guard_entries: int = Field(default=8192, ge=64, le=1 << 20)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    # What Kubernetes' downward API says of the pod, for the resource attributes k8s.*; empty: unknown.
    pod_name: str = Field(default="", max_length=253)
    pod_namespace: str = Field(default="", max_length=253)
    pod_uid: str = Field(default="", max_length=253)
    node_name: str = Field(default="", max_length=253)
    container_name: str = Field(default="", max_length=253)
    # Not SIDESTEP_ settings: from OTEL_*.
    otlp: Otlp = Field(default=Otlp(), repr=False)  # its headers may be credentials
    otlp_metrics: Otlp = Field(default=Otlp(), repr=False)
    metrics_exporter: Literal["otlp", "none"] = Metrics().exporter
    metrics_interval_s: float = Metrics().interval_s
    resource: dict[str, str] = {}

    @model_validator(mode="after")
    def _agree(self) -> Config:
        if self.soft_stale_s >= self.hard_stale_s:
            raise ValueError("SIDESTEP_SOFT_STALE: must be shorter than SIDESTEP_HARD_STALE")
        if self.journal_max < self.workers * _MIB:
            raise ValueError("SIDESTEP_JOURNAL_MAX: at least 1MiB per worker")
        if (self.control_plane_tls_cert is None) != (self.control_plane_tls_key is None):
            raise ValueError("SIDESTEP_CONTROL_PLANE_TLS_CERT: goes together with SIDESTEP_CONTROL_PLANE_TLS_KEY")
        if self.control_plane_tls_ca is None and (self.control_plane_tls_cert or self.control_plane_server_name):
            raise ValueError("SIDESTEP_CONTROL_PLANE_TLS_CA: is required for TLS")
        plain = self.control_plane_tls_ca is None and not is_loopback(self.control_plane)
        if plain and not self.control_plane_insecure:
            raise ValueError(
                f"SIDESTEP_CONTROL_PLANE: {self.control_plane} is another host, and needs SIDESTEP_CONTROL_PLANE_TLS_CA; "
                "if plain text is meant, set SIDESTEP_CONTROL_PLANE_INSECURE=true"
            )
        exposed = [listener for listener in self.listen if not listener.local]
        if exposed and not self.allow_non_loopback:
            raise ValueError(
                f"SIDESTEP_LISTEN: {exposed[0]} can be reached from other hosts; "
                "if that is meant, set SIDESTEP_ALLOW_NON_LOOPBACK=true"
            )
        if self.callers is not None and self.diagnose:
            raise ValueError(
                "SIDESTEP_DIAGNOSE: is for development, without SIDESTEP_CALLERS; there, `diagnose: true` permits one caller"
            )
        if exposed and self.diagnose:
            raise ValueError("SIDESTEP_DIAGNOSE: only with listeners on loopback or Unix sockets")
        return self

    @property
    def page_path(self) -> Path:
        """The shared page."""
        return self.data_dir / "page"

    @property
    def usage_dir(self) -> Path:
        """Counts of usage that wait for the control plane."""
        return self.data_dir / "usage"

    @property
    def checks_dir(self) -> Path:
        """Spot checks, and their outcomes."""
        return self.data_dir / "checks"

    @property
    def leases_dir(self) -> Path:
        """What the pod knows of slices of budgets and of what was spent of them."""
        return self.data_dir / "leases"

    @property
    def local_dir(self) -> Path:
        """What was reported in the pod, and what of it the control plane does not know yet."""
        return self.data_dir / "local"

    @property
    def journal_dir(self) -> Path:
        """The journal's segments."""
        return self.data_dir / "journal"


_FROM_OTEL = frozenset({"otlp", "otlp_metrics", "metrics_exporter", "metrics_interval_s", "resource"})


def _setting(field: str) -> str:
    return PREFIX + field.removesuffix("_s").upper()


SETTINGS = {_setting(field): field for field in Config.model_fields if field not in _FROM_OTEL}
"""Name of every setting, and its field in Config."""


def load(environment: Mapping[str, str] | None = None) -> Config:
    """Reads the settings. Raises ConfigError naming every setting that cannot be used."""
    environment = os.environ if environment is None else environment
    problems: list[str] = []
    values: dict[str, Any] = {}
    for source, names in (_file(environment), ("", _own(environment))):
        for name, value in names.items():
            if name in SETTINGS:
                values[SETTINGS[name]] = value
            else:
                problems.append(f"{source}{name}: unknown setting{_nearest(name)}")
    for parse in (_traces, _metrics, _resource):
        try:
            values |= parse(environment)
        except InvalidInputError as error:
            if str(error) not in problems:  # a variable for both signals
                problems.append(str(error))
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors(include_url=False)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def resource_attributes(config: Config) -> dict[str, str]:
    """The resource of all telemetry (OpenTelemetry semantic conventions, service.* and k8s.*).

    What OTEL_RESOURCE_ATTRIBUTES says wins, but for `service.instance.id`: chains of records are known by the sidecar's name.
    """
    kubernetes = {
        "k8s.pod.name": config.pod_name,
        "k8s.namespace.name": config.pod_namespace,
        "k8s.pod.uid": config.pod_uid,
        "k8s.node.name": config.node_name,
        "k8s.container.name": config.container_name,
    }
    known = {name: value for name, value in kubernetes.items() if value}
    return (
        {"service.version": version("sidestep")}
        | known
        | config.resource
        | {"service.instance.id": config.sidecar_name}
    )


def _traces(environment: Mapping[str, str]) -> dict[str, Any]:
    return {"otlp": parse_otlp(environment, "traces")}


def _metrics(environment: Mapping[str, str]) -> dict[str, Any]:
    settings = parse_metrics(environment)
    values = {"metrics_exporter": settings.exporter, "metrics_interval_s": settings.interval_s}
    # What is not sent needs no address.
    return values if settings.exporter == "none" else values | {"otlp_metrics": parse_otlp(environment, "metrics")}


def _resource(environment: Mapping[str, str]) -> dict[str, Any]:
    return {"resource": parse_resource(environment)}


def _own(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PREFIX) and name != _FILE and not _OTHERS.fullmatch(name)
        if not (name.endswith("_PORT") and _SERVICE_URL.fullmatch(value))
    }


def _file(environment: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The file's content, and how to name it in messages."""
    path = environment.get(_FILE)
    if not path:
        return "", {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{_FILE}: {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_FILE}: {path}: not YAML: {error}") from None
    if content is None:
        return "", {}
    if not isinstance(content, dict):
        raise ConfigError(f"{_FILE}: {path}: must be a mapping of settings")
    names = {str(name): value for name, value in content.items()}
    return f"{path}: ", {name: value for name, value in names.items() if not name.startswith(PREFIX + "CP_")}


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _problem(detail: Any) -> str:
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not detail["loc"]:
        return message
    name = _setting(str(detail["loc"][0]))
    if detail["type"] == "missing":
        return f"{name}: required"
    return f"{name}: {message}"
