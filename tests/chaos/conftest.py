"""What the tests of lost decisions share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import world
from tests.chaos.pod import Plane
from tests.fakes.stock import Stock


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A sidecar's data directory with the stock's tenant in it: it needs no control plane."""
    stock = Stock(tmp_path / "data")
    stock.load()
    stock.close()
    return tmp_path / "data"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane with the same tenant. Each test has a sidecar with a name of its own."""
    with Plane(tmp_path_factory.mktemp("plane")) as started:
        for resource in world.resources():
            started.put(resource)
        started.put(world.grant(1, active=True))
        yield started
