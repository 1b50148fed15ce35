"""Where addresses are: read from a file, followed when it changes, and no harm from one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.guard import places
from sidecar.guard.guards import Guards
from sidecar.guard.places import EARTH_HALFWAY_KM, Places, distance_km
from tests.fakes.mmdb import write
from tests.unit.guard.asked import BOUND, asked, rules

BERLIN, SYDNEY = (52.5, 13.4), (-33.9, 151.2)
ADDRESS, FAR = b"\xc6\x33\x64\x07", b"\xcb\x00\x71\x01"


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LOOK_EVERY_S", 0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "geo.mmdb"
    write(path, {"198.51.100.0/24": BERLIN, "203.0.113.0/24": SYDNEY})
    return path


def test_addresses_have_the_places_of_their_networks(file: Path) -> None:
    found = Places(file)
    assert found.find(ADDRESS) == BERLIN
    assert found.find(FAR) == SYDNEY
    assert found.find(b"\x0a\0\0\1") is None
    assert found.find(bytes(15) + b"\1") is None  # an IPv6 address in an IPv4 file


def test_changed_file_is_read_again(file: Path) -> None:
    found = Places(file)
    assert found.find(ADDRESS) == BERLIN
    write(file, {"198.51.100.0/24": SYDNEY})
    found.follow()
    assert found.find(ADDRESS) == SYDNEY


def test_file_that_cannot_be_read_changes_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = Places(file)
    file.write_bytes(b"no database")
    found.follow()
    assert found.find(ADDRESS) == BERLIN
    assert "SIDESTEP_GEO_FILE" in caplog.text
    file.unlink()
    found.follow()
    assert found.find(ADDRESS) == BERLIN


def test_without_a_file_no_address_has_a_place(tmp_path: Path) -> None:
    found = Places(tmp_path / "absent.mmdb")
    assert found.find(ADDRESS) is None
    write(tmp_path / "absent.mmdb", {"198.51.100.0/24": BERLIN})
    found.follow()
    assert found.find(ADDRESS) == BERLIN


def test_addresses_too_far_apart_are_impossible_travel(file: Path) -> None:
    guards = Guards(places=Places(file))
    ruled = rules("{impossibleTravel: {}}")
    assert guards.examine(asked(ruled, device=BOUND, address=ADDRESS)).gathered.facts.guards == ()
    (finding,) = guards.examine(asked(ruled, device=BOUND, address=FAR, at=600)).gathered.facts.guards
    assert finding.code == "IMPOSSIBLE_TRAVEL"


def test_distances() -> None:
    assert distance_km(*BERLIN, *BERLIN) == 0.0
    assert distance_km(*BERLIN, 48.14, 11.58) == pytest.approx(504, abs=5)
    assert distance_km(0.0, 0.0, 0.0, 180.0) <= EARTH_HALFWAY_KM
    assert distance_km(90.0, 0.0, -90.0, 0.0) <= EARTH_HALFWAY_KM
