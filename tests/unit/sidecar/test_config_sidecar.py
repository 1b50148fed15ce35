"""Settings: what is read, and what is refused with which message."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config import SETTINGS, Config, ConfigError, load
from sidecar.listeners import Address, Listener

TENANT = {"SIDESTEP_TENANT": "acme"}


def loaded(**environment: str) -> Config:
    return load(TENANT | environment)


def test_the_defaults_are_those_of_the_design() -> None:
    config = load(TENANT)
    assert [str(listener) for listener in config.listen] == ["127.0.0.1:9191"]
    assert str(config.http_listen) == "127.0.0.1:9192"
    assert config.control_plane == "127.0.0.1:9190"
    assert (config.workers, config.transport) == (1, "native")
    assert (config.soft_stale_s, config.hard_stale_s) == (300, 3600)
    assert config.max_message_bytes == 65536
    assert not config.reflection
    assert not config.diagnose
    assert not config.ready_requires_sync
    assert config.shutdown_grace_s == 25
    assert (config.otlp.endpoint, config.otlp.insecure, config.otlp.timeout_s) == ("localhost:4317", True, 10)
    assert config.resource == {"service.name": "sidestep"}


def test_every_setting_is_read() -> None:
    config = loaded(
        SIDESTEP_LISTEN="[::1]:0, unix:///run/sidestep/sidecar.sock",
        SIDESTEP_HTTP_LISTEN="0.0.0.0:9192",
        SIDESTEP_CONTROL_PLANE="cp.sidestep.svc:9190",
        SIDESTEP_CONTROL_PLANE_INSECURE="true",
        SIDESTEP_DATA_DIR="/data",
        SIDESTEP_WORKERS="4",
        SIDESTEP_TRANSPORT="grpcio",
        SIDESTEP_SIDECAR_NAME="pod-1",
        SIDESTEP_SOFT_STALE="250ms",
        SIDESTEP_HARD_STALE="1h30m",
        SIDESTEP_MAX_MESSAGE_BYTES="128KiB",
        SIDESTEP_REFLECTION="true",
        SIDESTEP_DIAGNOSE="true",
        SIDESTEP_READY_REQUIRES_SYNC="true",
        SIDESTEP_SHUTDOWN_GRACE="5s",
        SIDESTEP_STORE_MAX="1GiB",
        SIDESTEP_SCRUB_INTERVAL="10m",
        SIDESTEP_JOURNAL_MAX="64MiB",
        SIDESTEP_JOURNAL_SINK="none",
        SIDESTEP_JOURNAL_DURABILITY="disk",
        SIDESTEP_LOG_LEVEL="debug",
        SIDESTEP_ALLOW_NON_LOOPBACK="false",
    )
    assert config.listen == (Listener(Address("::1", 0)), Listener(path="/run/sidestep/sidecar.sock"))
    assert config.http_listen == Address("0.0.0.0", 9192)
    assert config.data_dir == Path("/data")
    assert config.journal_dir == Path("/data/journal")
    assert (config.workers, config.transport, config.sidecar_name) == (4, "grpcio", "pod-1")
    assert (config.soft_stale_s, config.hard_stale_s) == (0.25, 5400)
    assert config.max_message_bytes == 131072
    assert config.reflection
    assert config.diagnose
    assert config.ready_requires_sync
    assert (config.shutdown_grace_s, config.scrub_interval_s) == (5, 600)
    assert (config.store_max, config.journal_max) == (1 << 30, 64 << 20)
    assert (config.journal_sink, config.journal_durability, config.log_level) == ("none", "disk", "debug")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SIDESTEP_TENANT": ""}, "SIDESTEP_TENANT: '' is not a tenant id"),
        ({"SIDESTEP_TENANT": "ACME"}, "SIDESTEP_TENANT: 'ACME' is not a tenant id"),
        ({"SIDESTEP_WORKER": "2"}, "SIDESTEP_WORKER: unknown setting; did you mean SIDESTEP_WORKERS?"),
        ({"SIDESTEP_HTTP_PORT": "9192"}, "SIDESTEP_HTTP_PORT: unknown setting"),
        ({"SIDESTEP_XYZZY": "1"}, "SIDESTEP_XYZZY: unknown setting"),
        ({"SIDESTEP_WORKERS": "0"}, "SIDESTEP_WORKERS: Input should be greater than or equal to 1"),
        ({"SIDESTEP_WORKERS": "many"}, "SIDESTEP_WORKERS: "),
        ({"SIDESTEP_TRANSPORT": "http"}, "SIDESTEP_TRANSPORT: "),
        ({"SIDESTEP_SOFT_STALE": "5"}, "SIDESTEP_SOFT_STALE: '5' is not a duration such as"),
        ({"SIDESTEP_SOFT_STALE": "-5m"}, "SIDESTEP_SOFT_STALE: '-5m' is not a duration such as"),
        ({"SIDESTEP_SOFT_STALE": "0s"}, "SIDESTEP_SOFT_STALE: Input should be greater than 0"),
        (
            {"SIDESTEP_SOFT_STALE": "1h", "SIDESTEP_HARD_STALE": "1h"},
            "SIDESTEP_SOFT_STALE: must be shorter than SIDESTEP_HARD_STALE",
        ),
        ({"SIDESTEP_MAX_MESSAGE_BYTES": "64KB"}, "SIDESTEP_MAX_MESSAGE_BYTES: '64KB' is not a size"),
        ({"SIDESTEP_MAX_MESSAGE_BYTES": "10"}, "SIDESTEP_MAX_MESSAGE_BYTES: Input should be greater than"),
        ({"SIDESTEP_JOURNAL_MAX": "4MiB", "SIDESTEP_WORKERS": "8"}, "SIDESTEP_JOURNAL_MAX: at least 1MiB per worker"),
        ({"SIDESTEP_REFLECTION": "perhaps"}, "SIDESTEP_REFLECTION: "),
        ({"SIDESTEP_LISTEN": ""}, "SIDESTEP_LISTEN: 1 to 8 listeners, not 0"),
        ({"SIDESTEP_LISTEN": "9191"}, "SIDESTEP_LISTEN: '9191' is not host:port"),
        ({"SIDESTEP_LISTEN": "127.0.0.1:99999"}, "SIDESTEP_LISTEN: '127.0.0.1:99999' is not host:port"),
        ({"SIDESTEP_LISTEN": "::1:9191"}, "SIDESTEP_LISTEN: '::1:9191': an IPv6 address is written"),
        ({"SIDESTEP_LISTEN": "unix://relative.sock"}, "a Unix socket is written unix:///path/to.sock"),
        ({"SIDESTEP_LISTEN": "unix:///" + "x" * 110}, "too long for a Unix socket"),
        ({"SIDESTEP_LISTEN": "127.0.0.1:1,127.0.0.1:1"}, "SIDESTEP_LISTEN: a listener is named twice"),
        ({"SIDESTEP_LISTEN": "0.0.0.0:9191"}, "SIDESTEP_LISTEN: 0.0.0.0:9191 can be reached from other hosts"),
        ({"SIDESTEP_LISTEN": "sidecar.example:9191"}, "can be reached from other hosts"),
        (
            {
                "SIDESTEP_LISTEN": "0.0.0.0:9191",
                "SIDESTEP_ALLOW_NON_LOOPBACK": "true",
                "SIDESTEP_DIAGNOSE": "true",
            },
            "SIDESTEP_DIAGNOSE: only with listeners on loopback or Unix sockets",
        ),
        (
            {"SIDESTEP_CALLERS": "/run/callers.yaml", "SIDESTEP_DIAGNOSE": "true"},
            "SIDESTEP_DIAGNOSE: is for development, without SIDESTEP_CALLERS",
        ),
        (
            {"SIDESTEP_CALLERS": "/run/callers.yaml", "SIDESTEP_LISTEN": "0.0.0.0:9191"},
            "SIDESTEP_LISTEN: 0.0.0.0:9191 can be reached from other hosts",
        ),
        ({"SIDESTEP_HTTP_LISTEN": "nowhere"}, "SIDESTEP_HTTP_LISTEN: 'nowhere' is not host:port"),
        (
            {"SIDESTEP_CONTROL_PLANE": "cp.sidestep.svc:9190"},
            "SIDESTEP_CONTROL_PLANE: cp.sidestep.svc:9190 is another host, and needs SIDESTEP_CONTROL_PLANE_TLS_CA",
        ),
        (
            {"SIDESTEP_CONTROL_PLANE_TLS_CERT": "/c", "SIDESTEP_CONTROL_PLANE_TLS_CA": "/a"},
            "SIDESTEP_CONTROL_PLANE_TLS_CERT: goes together with SIDESTEP_CONTROL_PLANE_TLS_KEY",
        ),
        ({"SIDESTEP_CONTROL_PLANE_SERVER_NAME": "cp"}, "SIDESTEP_CONTROL_PLANE_TLS_CA: is required for TLS"),
        ({"SIDESTEP_CONTROL_PLANE": "http://cp"}, "SIDESTEP_CONTROL_PLANE: 'http://cp' is not host:port"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://c:1"}, "OTEL_EXPORTER_OTLP_ENDPOINT: 'ftp://c:1': the scheme"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a"}, "OTEL_RESOURCE_ATTRIBUTES: must be a list"),
        ({"SIDESTEP_POD_NAME": "p" * 254}, "SIDESTEP_POD_NAME: "),
        ({"SIDESTEP_CONFIG": "/nowhere.yaml"}, "SIDESTEP_CONFIG: /nowhere.yaml: No such file"),
    ],
)
def test_bad_settings_are_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(TENANT | environment)
    assert message in str(refused.value)


def test_a_missing_tenant_is_said_so() -> None:
    with pytest.raises(ConfigError, match="SIDESTEP_TENANT: required"):
        load({})


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        load({"SIDESTEP_WORKERS": "x", "SIDESTEP_SOFT_STAL": "5m", "OTEL_EXPORTER_OTLP_TIMEOUT": "x"})
    lines = str(refused.value).splitlines()
    assert len(lines) == 4
    assert {line.split(":")[0] for line in lines} == {
        "SIDESTEP_TENANT",
        "SIDESTEP_WORKERS",
        "SIDESTEP_SOFT_STAL",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
    }


def test_a_credential_is_never_repeated_in_a_message() -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(OTEL_EXPORTER_OTLP_HEADERS="authorization=s3cret%0Ax")
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in repr(loaded(OTEL_EXPORTER_OTLP_HEADERS="authorization=s3cret"))


def test_settings_of_other_programs_are_ignored() -> None:
    loaded(
        SIDESTEP_CP_LISTEN="127.0.0.1:1",
        SIDESTEP_SERVER="127.0.0.1:2",
        SIDESTEP_CONTROLPLANE_SERVICE_HOST="10.0.0.1",
        SIDESTEP_CONTROLPLANE_SERVICE_PORT="9190",
        SIDESTEP_CONTROLPLANE_SERVICE_PORT_GRPC="9190",
        SIDESTEP_CONTROLPLANE_PORT="tcp://10.0.0.1:9190",
        SIDESTEP_CONTROLPLANE_PORT_9190_TCP="tcp://10.0.0.1:9190",
        SIDESTEP_CONTROLPLANE_PORT_9190_TCP_ADDR="10.0.0.1",
        UNRELATED="1",
    )


def test_the_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    path = tmp_path / "sidestep.yaml"
    path.write_text(
        "SIDESTEP_TENANT: acme\nSIDESTEP_WORKERS: 3\nSIDESTEP_SOFT_STALE: 2m\n"
        "SIDESTEP_LISTEN: [127.0.0.1:0, unix:///run/s.sock]\nSIDESTEP_CP_LISTEN: 127.0.0.1:1\n"
    )
    config = load({"SIDESTEP_CONFIG": str(path), "SIDESTEP_WORKERS": "2"})
    assert (config.tenant, config.workers, config.soft_stale_s) == ("acme", 2, 120)
    assert [str(listener) for listener in config.listen] == ["127.0.0.1:0", "unix:///run/s.sock"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("SIDESTEP_WORKRES: 3", "SIDESTEP_WORKRES: unknown setting; did you mean SIDESTEP_WORKERS?"),
        ("workers: 3", "workers: unknown setting"),
        ("SIDESTEP_SOFT_STALE: 5", "SIDESTEP_SOFT_STALE: 5 has no unit"),
        ("- 1", "must be a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "sidestep.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as refused:
        loaded(SIDESTEP_CONFIG=str(path))
    assert message in str(refused.value)
    assert str(path) in str(refused.value) or "SIDESTEP_SOFT_STALE" in str(refused.value)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert loaded(SIDESTEP_CONFIG=str(tmp_path / "empty.yaml")).workers == 1


def test_workers_share_tcp_ports_and_have_their_own_sockets() -> None:
    tcp, unix = loaded(SIDESTEP_LISTEN="127.0.0.1:0,unix:///run/s/sidecar.sock").listen
    assert str(tcp.for_worker(0)) == "127.0.0.1:0"
    assert str(tcp.for_worker(2).with_port(4000)) == "127.0.0.1:4000"
    assert str(unix.for_worker(0)) == "unix:///run/s/sidecar.sock"
    assert str(unix.for_worker(2)) == "unix:///run/s/sidecar-2.sock"
    fixed = loaded(SIDESTEP_LISTEN="127.0.0.1:9191").listen[0]
    assert str(fixed.for_worker(1).with_port(4000)) == "127.0.0.1:9191"
    assert unix.with_port(4000) == unix


def test_names_of_settings_are_those_scripts_rely_on() -> None:
    assert {
        "SIDESTEP_LISTEN",
        "SIDESTEP_HTTP_LISTEN",
        "SIDESTEP_CONTROL_PLANE",
        "SIDESTEP_DATA_DIR",
        "SIDESTEP_WORKERS",
        "SIDESTEP_TRANSPORT",
        "SIDESTEP_TENANT",
        "SIDESTEP_SOFT_STALE",
        "SIDESTEP_HARD_STALE",
        "SIDESTEP_JOURNAL_MAX",
        "SIDESTEP_MAX_MESSAGE_BYTES",
        "SIDESTEP_REFLECTION",
        "SIDESTEP_SHUTDOWN_GRACE",
    } <= set(SETTINGS)


def test_callers_may_be_known_beyond_loopback_too() -> None:
    config = loaded(
        SIDESTEP_CALLERS="/run/callers.yaml", SIDESTEP_LISTEN="0.0.0.0:9191", SIDESTEP_ALLOW_NON_LOOPBACK="true"
    )
    assert config.callers == Path("/run/callers.yaml")
    assert load(TENANT).callers is None
