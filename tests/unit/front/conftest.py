from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.front.rig import Rig


@pytest.fixture
def rigged(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(*, start: bool = True, **options: Any) -> Rig:
        rig = Rig(tmp_path / f"rig-{len(rigs)}", **options)
        rigs.append(rig)
        if start:
            rig.start()
        return rig

    yield make
    for rig in rigs:
        rig.stop()


@pytest.fixture
def rig(rigged: Callable[..., Rig]) -> Rig:
    return rigged()


@pytest.fixture
def full(rigged: Callable[..., Rig]) -> Callable[..., Rig]:
    """A rig whose journal is at its bound."""

    def make(**options: Any) -> Rig:
        rig = rigged(start=False, **options)
        rig.fill_journal()
        rig.start()
        return rig

    return make
