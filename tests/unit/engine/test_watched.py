"""Files that others replace: every change is noticed, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.watched import WatchedFiles


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is written now was written long ago."""
    now_ns = time.time_ns
    monkeypatch.setattr("engine.watched.time.time_ns", lambda: now_ns() + 3600 * 10**9)


def watched(*paths: Path) -> WatchedFiles:
    files = WatchedFiles()
    for path in paths:
        files.read(str(path), 100)
    return files


def rewrite(path: Path) -> None:
    path.write_text("longer than before")


def replace(path: Path) -> None:
    path.with_name("fresh").write_text(path.read_text())
    path.with_name("fresh").replace(path)


def remove(path: Path) -> None:
    path.unlink()


def touch(path: Path) -> None:
    os.utime(path, (5e8, 5e8))


def close_to_others(path: Path) -> None:
    path.chmod(0o600)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", [rewrite, replace, remove, touch, close_to_others])
def test_a_change_is_noticed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    for each in (path, other):
        each.write_text("before")
        each.chmod(0o644)
    files = watched(path, other)
    assert not files.changed()
    assert not files.changed()
    change(path)
    assert files.changed()


@pytest.mark.usefixtures("later")
def test_a_link_that_points_elsewhere_is_a_change(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text("the same")
        os.utime(tmp_path / name / "token", (1e9, 1e9))
    (tmp_path / "data").symlink_to("v1")
    (tmp_path / "token").symlink_to("data/token")
    files = watched(tmp_path / "token")
    assert not files.changed()
    (tmp_path / "next").symlink_to("v2")
    os.replace(tmp_path / "next", tmp_path / "data")
    assert files.changed()


@pytest.mark.usefixtures("later")
def test_a_file_that_appears_is_a_change(tmp_path: Path) -> None:
    files = watched(tmp_path / "file")
    assert not files.changed()
    (tmp_path / "file").write_text("now")
    assert files.changed()


def test_what_was_written_just_now_is_read_again(tmp_path: Path) -> None:
    """Within one tick of the file system's clock it may be written twice, to the same length."""
    (tmp_path / "file").write_text("now")
    assert watched(tmp_path / "file").changed()


def test_content_and_who_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    for mode, open_to_others in ((0o640, False), (0o644, True), (0o642, True), (0o600, False)):
        path.chmod(mode)
        assert WatchedFiles().read(str(path), 100) == (b"x" * 100, open_to_others)
    assert WatchedFiles().read(str(tmp_path / "absent"), 100) is None


@pytest.mark.usefixtures("later")
def test_what_could_not_be_read_counts_as_changed(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 101)
    for path in (tmp_path / "large", tmp_path, tmp_path / "large" / "below"):
        files = WatchedFiles()
        with pytest.raises(OSError, match=r"larger|regular|Not a directory"):
            files.read(str(path), 100)
        assert files.changed()
