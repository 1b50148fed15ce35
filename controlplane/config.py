"""The settings, and the only place in the control plane that reads the environment."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from controlplane.errors import SettingsError
from controlplane.store.dialect import database_path
from engine.errors import InvalidInputError
from engine.names import check_tenant

PREFIX = "SIDESTEP_CP_"
FILE_SETTING = f"{PREFIX}CONFIG"

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_SIZE = re.compile(r"([0-9]+)(KiB|MiB|GiB)?")
_SIZE_UNITS = {None: 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_ADDRESS = re.compile(r"(?P<host>[^:\[\]/\s]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})")


def _to_seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not a duration (examples: 50ms, 1s, 5m, 24h)")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def _to_bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not a size (examples: 1048576, 256MiB)")
    return int(match[1]) * _SIZE_UNITS[match[2]]


def _check_address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match["port"]) > 65_535:
        raise ValueError(f"{value!r} is not an address (example: 127.0.0.1:9190; port 0 takes a free one)")
    return value


def _check_scope(value: str) -> str:
    for tenant in value.split(",") if value != "*" else ():
        try:
            check_tenant(tenant.strip())
        except InvalidInputError as error:
            raise ValueError(error.problem) from None
    return value


def _check_database(value: str) -> str:
    try:
        database_path(value)
    except SettingsError as error:
        raise ValueError(str(error)) from None
    return value


Seconds = Annotated[float, BeforeValidator(_to_seconds)]
Bytes = Annotated[int, BeforeValidator(_to_bytes)]
Address = Annotated[str, AfterValidator(_check_address)]


class Settings(BaseSettings):
    """Each setting is named SIDESTEP_CP_ and its name here in capitals, in the environment and in the YAML file alike.

    The environment comes before the file.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    listen: Address = Field("127.0.0.1:9190", description="where gRPC is served")
    http_listen: Address = Field("127.0.0.1:9189", description="where /healthz, /readyz and /metrics are served")
    database_url: Annotated[str, AfterValidator(_check_database)] = Field(
        "sqlite+aiosqlite:///sidestep.db", description="the database"
    )
    snapshot_dir: str = Field("", description="folder of snapshot files; empty: beside the database")
    operators: str = Field(
        "", description="path of the operators' file: who may administer; empty: development mode, anyone may"
    )
    sync_scope: Annotated[str, AfterValidator(_check_scope)] = Field(
        "*", description="tenants a sidecar follows, separated by commas; *: all"
    )
    heartbeat: Seconds = Field(1.0, ge=0.05, le=60, description="between two heartbeats on a stream")
    ack_timeout: Seconds = Field(
        60.0, ge=1, le=3_600, description="longest wait for a sidecar to acknowledge a snapshot chunk"
    )
    max_streams: int = Field(10_000, ge=1, description="sidecars connected at a time")
    imports_per_tenant: int = Field(2, ge=1, le=4, description="imports of one tenant at a time")
    import_records: int = Field(
        3_000_000,
        ge=1,
        description="records a tenant may import per minute; an import may overdraw, the next one waits",
    )
    max_snapshot_builds: int = Field(2, ge=1, le=16, description="snapshots built at a time")
    log_entries: int = Field(10_000, ge=1, description="commits kept per tenant and lane in the change log")
    log_bytes: Bytes = Field(256 * 1024**2, ge=1024, description="bytes kept per tenant and lane in the change log")
    sidecar_retention: Seconds = Field(86_400.0, ge=300, description="after which an absent sidecar is forgotten")
    journal_retention: Seconds = Field(
        7_776_000.0, ge=3_600, description="after which a journal chain that is no longer reported is forgotten"
    )
    review_interval: Seconds = Field(10.0, ge=0.1, le=3_600, description="between two looks at what sidecars reported")
    fleet_subjects: int = Field(
        20,
        ge=2,
        le=1_000_000,
        description="distinct subjects with one fingerprint, over all sidecars, that are too many",
    )
    fleet_window: Seconds = Field(86_400.0, ge=3_600, le=604_800, description="in which they are counted")
    due_interval: Seconds = Field(
        15.0, ge=0.05, le=3_600, description="between two looks for grants that expire or lapse"
    )
    drain: Seconds = Field(10.0, ge=0, le=600, description="longest wait for running calls when stopping")
    reflection: bool = Field(False, description="serve gRPC reflection")
    log_level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = Field("INFO", description="of stderr")
    log_format: Literal["json", "text"] = Field("json", description="of stderr: `json` or `text`")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, then what is given (the file)."""
        return env_settings, init_settings

    def scope(self) -> frozenset[str] | None:
        """The tenants of `sync_scope`; None: all."""
        if self.sync_scope == "*":
            return None
        return frozenset(tenant.strip() for tenant in self.sync_scope.split(","))

    def snapshot_path(self) -> Path:
        """The folder of snapshot files."""
        if self.snapshot_dir:
            return Path(self.snapshot_dir)
        database = database_path(self.database_url)
        return database.with_name(f"{database.name}.snapshots")


def load_settings() -> Settings:
    """The settings from the environment and the file it names. Raises SettingsError naming every wrong one."""
    _refuse_unknown((name for name in os.environ if name.upper().startswith(PREFIX)), "environment")
    path = os.environ.get(FILE_SETTING)
    values = _read_file(Path(path)) if path else {}
    try:
        return Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in values.items()})
    except ValidationError as error:
        problems = (f"{setting_name(str(one['loc'][0]))}: {_message(one['msg'])}" for one in error.errors())
        raise SettingsError("\n".join(problems)) from None


def otel_environment() -> dict[str, str]:
    """OpenTelemetry's own variables, for commands that send to a collector."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}


def setting_name(field: str) -> str:
    """The name of a setting as users write it."""
    return f"{PREFIX}{field.upper()}"


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"{FILE_SETTING}: {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{FILE_SETTING}: {path}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{FILE_SETTING}: {path}: must be a mapping of setting names to values")
    _refuse_unknown(map(str, content), str(path))
    return content


def _refuse_unknown(names: Iterable[str], where: str) -> None:
    known = [setting_name(field) for field in Settings.model_fields] + [FILE_SETTING]
    problems = []
    for name in sorted(names):
        if name not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1)
            problems.append(
                f"{name}: unknown setting in {where}" + (f"; did you mean {nearest[0]}?" if nearest else "")
            )
    if problems:
        raise SettingsError("\n".join(problems))


def _message(text: str) -> str:
    return text.removeprefix("Value error, ")
