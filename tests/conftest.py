"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.fakes.postgres import Postgres

# A busy machine is slow at anything, so no example has a time limit. Where a change is judged (`.ci/run` sets CI) examples are
# always the same ones: it must not fail by chance for what was there before. Everywhere else they are drawn anew each time.
settings.register_profile(
    "sidestep", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("sidestep")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, started with the first test that asks for one."""
    from tests.fakes.postgres import Postgres

    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind, with the current schema (SQLite: with the first store that is opened)."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/data/sidestep.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    made = server.create()
    yield made
    server.drop(made)
