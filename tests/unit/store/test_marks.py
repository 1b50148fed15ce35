"""How far each lane ever was."""

from __future__ import annotations

from pathlib import Path

from engine.names import Lane
from sidecar.store.marks import FILE, Mark, Marks, forget_marks

URGENT, BULK = ("acme", Lane.URGENT), ("acme", Lane.BULK)


def test_marks_only_rise_and_are_there_again_after_a_restart(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    assert marks.get(URGENT) is None
    marks.lift(URGENT, 2, 7)
    marks.lift(URGENT, 1, 900)
    marks.lift(URGENT, 2, 6)
    marks.lift(BULK, 1, 1)
    marks.flush()
    assert Marks(tmp_path).known() == {URGENT: Mark(2, 7), BULK: Mark(1, 1)}
    # The first of a series is written at once, those of the next second with it, or when asked for.
    marks.lift(URGENT, 3, 1)
    marks.flush()
    assert Marks(tmp_path).get(URGENT) == Mark(2, 7)
    marks.flush(now=True)
    assert Marks(tmp_path).get(URGENT) == Mark(3, 1)


def test_a_damaged_row_counts_as_missing(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.lift(URGENT, 2, 7)
    marks.lift(BULK, 1, 1)
    marks.flush()
    whole = (tmp_path / FILE).read_bytes()
    for at in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[at] ^= 0x40
        (tmp_path / FILE).write_bytes(spoilt)
        found = Marks(tmp_path).known()
        assert found.items() <= {URGENT: Mark(2, 7), BULK: Mark(1, 1)}.items()
    for cut in range(len(whole)):
        (tmp_path / FILE).write_bytes(whole[:cut])
        assert Marks(tmp_path).known().items() <= {URGENT: Mark(2, 7), BULK: Mark(1, 1)}.items()


def test_without_pinned_keys_nothing_counts_as_verified_later(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.lift(URGENT, 2, 7)
    marks.flush()
    forget_marks(tmp_path)
    forget_marks(tmp_path)
    assert Marks(tmp_path).known() == {}
