"""Settings from the environment and from a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controlplane.config import load_settings
from controlplane.errors import SettingsError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("SIDESTEP_"):
            monkeypatch.delenv(name)


def test_defaults() -> None:
    settings = load_settings()
    assert settings.listen == "127.0.0.1:9190"
    assert settings.http_listen == "127.0.0.1:9189"
    assert settings.database_url == "sqlite+aiosqlite:///sidestep.db"
    assert settings.snapshot_path() == Path("sidestep.db.snapshots")
    assert settings.scope() is None
    assert (settings.heartbeat, settings.reflection) == (1.0, False)


def test_the_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cp.yaml"
    file.write_text(
        "SIDESTEP_CP_LISTEN: '[::1]:7000'\nSIDESTEP_CP_HEARTBEAT: 250ms\nSIDESTEP_CP_LOG_BYTES: 2MiB\n"
        "SIDESTEP_CP_MAX_STREAMS: 7\nSIDESTEP_CP_REFLECTION: true\n"
    )
    monkeypatch.setenv("SIDESTEP_CP_CONFIG", str(file))
    monkeypatch.setenv("SIDESTEP_CP_HEARTBEAT", "2s")
    monkeypatch.setenv("SIDESTEP_CP_SYNC_SCOPE", "acme, zeta")
    monkeypatch.setenv("SIDESTEP_CP_SNAPSHOT_DIR", "/snapshots")
    settings = load_settings()
    assert (settings.listen, settings.heartbeat, settings.log_bytes) == ("[::1]:7000", 2.0, 2 * 1024 * 1024)
    assert (settings.max_streams, settings.reflection) == (7, True)
    assert settings.scope() == frozenset({"acme", "zeta"})
    assert settings.snapshot_path() == Path("/snapshots")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("LISTN", "x", "unknown setting in environment; did you mean SIDESTEP_CP_LISTEN?"),
        ("LISTEN", "9190", "'9190' is not an address"),
        ("LISTEN", "localhost:70000", "is not an address"),
        ("HTTP_LISTEN", "unix:/tmp/x", "is not an address"),
        ("HEARTBEAT", "1", "'1' is not a duration"),
        ("HEARTBEAT", "10ms", "greater than or equal to 0.05"),
        ("LOG_BYTES", "2 bytes", "is not a size"),
        ("MAX_STREAMS", "many", "valid integer"),
        (
            "LISTEN",
            "0.0.0.0:9190",
            "SIDESTEP_CP_LISTEN: 0.0.0.0:9190 can be reached from other hosts, and needs SIDESTEP_CP_TLS_CERT, ",
        ),
        ("ADMIN_LISTEN", "[::]:0", "SIDESTEP_CP_ADMIN_LISTEN: [::]:0 can be reached from other hosts"),
        ("TLS_CERT", "/c", "SIDESTEP_CP_TLS_CERT: needs SIDESTEP_CP_TLS_KEY"),
        ("SIDECARS", "/s", "SIDESTEP_CP_SIDECARS: needs SIDESTEP_CP_TLS_CLIENT_CA"),
        ("REVOKED", "/r", "SIDESTEP_CP_REVOKED: needs SIDESTEP_CP_TLS_CLIENT_CA"),
        ("SYNC_SCOPE", "acme,Zeta", "'Zeta' is not a tenant id"),
        ("SYNC_SCOPE", "", "is not a tenant id"),
        ("DATABASE_URL", "postgres://db", "not supported"),
        ("DATABASE_URL", "nonsense", "malformed"),
        ("LOG_LEVEL", "LOUD", "match pattern"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(f"SIDESTEP_CP_{name}", value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value).startswith(f"SIDESTEP_CP_{name}: ")
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            "SIDESTEP_CP_HARTBEAT: 1s\n",
            "SIDESTEP_CP_HARTBEAT: unknown setting in {file}; did you mean SIDESTEP_CP_HEART",
        ),
        ("listen: 1.2.3.4:1\n", "listen: unknown setting in"),
        ("- a\n", "must be a mapping"),
        ("a: [\n", "line 2"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, problem: str
) -> None:
    file = tmp_path / "cp.yaml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SIDESTEP_CP_CONFIG", str(file))
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert problem.format(file=file) in str(raised.value)


def test_every_wrong_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTEP_CP_LISTEN", "x")
    monkeypatch.setenv("SIDESTEP_CP_DRAIN", "x")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        "SIDESTEP_CP_LISTEN",
        "SIDESTEP_CP_DRAIN",
    ]
