"""Holder files: written before anything is spent, read by another process, and believed only where they were made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sidecar.lease.holders import AccountPeriod, HolderError, HolderFile, HolderFiles, read_holder

CHAIN = "w0-0000000000aa"
ALICE, BOB = AccountPeriod("acme", "g1", "alice", 3), AccountPeriod("acme", "g1", "bob")


def test_file_tells_what_every_number_means(tmp_path: Path) -> None:
    file = HolderFile(tmp_path / "leases", CHAIN, 0, "boot-1")
    assert [file.number(account) for account in (ALICE, BOB, ALICE)] == [0, 1, 0]
    (read,) = HolderFiles(tmp_path / "leases").read()
    assert read.accounts == {0: ALICE, 1: BOB}
    assert (read.header.holder, read.header.chain, read.alive) == (file.holder, CHAIN, True)
    file.close()
    (read,) = HolderFiles(tmp_path / "leases").read()
    assert not read.alive
    assert read.trusted("boot-1")


def test_no_two_holders_have_one_name(tmp_path: Path) -> None:
    files = [HolderFile(tmp_path, CHAIN, number, "boot-1") for number in range(20)]
    assert len({file.holder for file in files}) == 20


def test_another_boot_and_a_copy_are_not_believed(tmp_path: Path) -> None:
    file = HolderFile(tmp_path / "leases", CHAIN, 0, "boot-1")
    file.close()
    shutil.copytree(tmp_path / "leases", tmp_path / "copy", copy_function=shutil.copy2)
    (original,), (copy,) = HolderFiles(tmp_path / "leases").read(), HolderFiles(tmp_path / "copy").read()
    assert original.trusted("boot-1")
    assert not original.trusted("boot-2")
    assert not copy.trusted("boot-1")


def test_torn_end_is_an_account_that_was_never_used(tmp_path: Path) -> None:
    file = HolderFile(tmp_path, CHAIN, 0, "boot-1")
    file.number(ALICE)
    whole = file.path.stat().st_size
    file.number(BOB)
    for size in range(whole, file.path.stat().st_size):
        os.truncate(file.path, size)
        assert read_holder(file.path).accounts == {0: ALICE}


@pytest.mark.parametrize("at", [0, 9, 20, 60])
def test_damaged_header_is_told_and_its_slices_count_as_spent(tmp_path: Path, at: int) -> None:
    file = HolderFile(tmp_path, CHAIN, 0, "boot-1")
    data = bytearray(file.path.read_bytes())
    data[at] ^= 1
    file.path.write_bytes(data)
    with pytest.raises(HolderError):
        read_holder(file.path)
    assert HolderFiles(tmp_path).read() == []
    assert not file.path.exists()


def test_after_a_failed_write_no_further_account_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = HolderFile(tmp_path, CHAIN, 0, "boot-1")
    write = os.write

    def full(fd: int, data: bytes) -> int:
        write(fd, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(HolderError, match="No space"):
        file.number(ALICE)
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(HolderError, match="half an entry"):
        file.number(BOB)
    assert read_holder(file.path).accounts == {}


def test_condemned_chain_has_no_holders_left(tmp_path: Path) -> None:
    one, other = HolderFile(tmp_path, CHAIN, 0, "b"), HolderFile(tmp_path, "w1-0000000000aa", 0, "b")
    files = HolderFiles(tmp_path)
    files.condemn(CHAIN)
    assert files.open_chains() == {"w1-0000000000aa"}
    assert [holder.header.holder for holder in files.read()] == [other.holder]
    one.number(ALICE)  # its worker goes on, and closes it itself
    one.remove()


def test_without_a_directory_there_are_none(tmp_path: Path) -> None:
    assert HolderFiles(tmp_path / "leases").read() == []
    assert HolderFiles(tmp_path / "leases").open_chains() == set()
