"""What the program does to its database besides serving: migrate, back up, restore, raise the epoch."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from controlplane.config import Settings
from controlplane.errors import SettingsError, StoreError
from controlplane.snapshots import lock_directory
from controlplane.store.database import Database
from controlplane.store.dialect import database_path, open_engine
from controlplane.store.epochs import raise_epoch
from controlplane.store.schema import check_schema, migrate

_PAGES = 1_024
_UNDONE = (
    "everything written after the backup was made is undone: grants revoked since are in force again, sessions ended and devices"
    " blocked since are not, policies and the threat posture are as they were. Do again what must hold.",
    "budgets: nothing is granted to anybody before the next strong authentication, because what was leased since is not known.",
    "proofs and approvals used since can be used again, until they expire.",
)


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The commands of the program; without one it serves. Which database: the settings say."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands (without one it serves)")
    commands.add_parser("migrate", help="bring the database's schema up to date")
    backup = commands.add_parser("backup", help="copy a SQLite database into FILE, also while it is served")
    restoring = commands.add_parser(
        "restore", help="put the backup FILE in the place of a SQLite database, in a new epoch"
    )
    for command in (backup, restoring):
        command.add_argument("file", metavar="FILE", type=Path)
    raising = commands.add_parser(
        "raise-epoch", help="begin a new epoch, after PostgreSQL was restored or lost commits"
    )
    for command in (restoring, raising):
        command.add_argument(
            "--at-least",
            metavar="EPOCH",
            type=int,
            default=0,
            help="the new epoch is this or greater (default: Unix time)",
        )


def run_command(arguments: argparse.Namespace, settings: Settings) -> str:
    """Runs the command asked for; returns what to say. Raises SidestepError."""
    if arguments.command == "migrate":
        return asyncio.run(migrate_database(settings))
    if arguments.command == "backup":
        return back_up(settings, arguments.file)
    if arguments.command == "restore":
        return restore(settings, arguments.file, arguments.at_least)
    return asyncio.run(raise_epoch_of(settings, arguments.at_least))


async def migrate_database(settings: Settings) -> str:
    """Brings the schema up to date. Raises SchemaError, StoreError."""
    database = Database(open_engine(settings.database_url))
    try:
        before, after = await migrate(database)
    finally:
        await database.close()
    if before == after:
        return f"schema version {after}: up to date"
    return f"schema version {after}: {'made' if before == 0 else f'migrated from version {before}'}"


async def raise_epoch_of(settings: Settings, at_least: int) -> str:
    """Begins another epoch, after the database was set back. Raises SchemaError, StoreError."""
    database = Database(open_engine(settings.database_url))
    try:
        await check_schema(database)
        before, after = await raise_epoch(database, at_least=at_least)
    finally:
        await database.close()
    return "\n".join((f"epoch {after} (was {before})", *(f"WARNING: {line}" for line in _UNDONE)))


def back_up(settings: Settings, target: Path) -> str:
    """Copies a SQLite database, also while it is served, into a new file. Raises SettingsError, StoreError."""
    source = _sqlite_file(settings, "pg_dump")
    if not source.is_file():
        raise StoreError(f"{source}: no such database")
    if target.exists():
        raise StoreError(f"{target}: exists already")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with _translated(source), closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as connection:
            _copy(connection, temporary)
            version, epoch, heads = _inspect(temporary)
        os.link(temporary, target)  # unlike a rename it overwrites nothing
        _sync_directory(target.parent)
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror}") from error
    finally:
        _remove(temporary)
    revisions = ", ".join(f"{tenant}/{lane} at {revision}" for (tenant, lane), revision in sorted(heads.items()))
    return f"backup of {source} in {target}: schema version {version}, epoch {epoch}, {revisions or 'no tenants'}"


def restore(settings: Settings, source: Path, at_least: int) -> str:
    """Puts a backup in the place of a SQLite database that nobody serves, in a new epoch; the replaced one is kept beside it.

    A crash at any moment leaves the one or the other. Raises SettingsError, SchemaError, StoreError.
    """
    target = _sqlite_file(settings, "pg_restore")
    if not source.is_file():
        raise StoreError(f"{source}: no such file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = settings.snapshot_path()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = lock_directory(folder)
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror}") from error
    if lock is None:
        raise StoreError(f"{target}: a control plane serves it; stop it first")
    temporary = target.with_name(f".{target.name}.restored.{os.getpid()}")
    try:
        with _translated(source), closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as connection:
            _copy(connection, temporary)
            _inspect(temporary)
        # What this program cannot serve is refused before anything is touched.
        asyncio.run(_migrate(temporary))
        told, replaced_epoch, undone = _set_aside(target)
        before, after = asyncio.run(_begin_again(temporary, max(at_least, replaced_epoch + 1)))
        with _translated(temporary), closing(sqlite3.connect(temporary)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
        _, _, heads = _inspect(temporary)
        os.replace(temporary, target)
        _sync_directory(target.parent)
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror}") from error
    finally:
        os.close(lock)
        _remove(temporary)
    lines = [f"restored {target} from {source}: epoch {after} (the backup had {before})", *told]
    for (tenant, lane), revision in sorted(undone.items()):
        kept = heads.get((tenant, lane), 0)
        if revision > kept:
            name = "urgent" if lane == 1 else "bulk"
            lines.append(f"WARNING: tenants/{tenant} {name}: back from revision {revision} to {kept}")
    return "\n".join((*lines, *(f"WARNING: {line}" for line in _UNDONE)))


async def _migrate(path: Path) -> None:
    database = Database(open_engine(f"sqlite+aiosqlite:///{path}"))
    try:
        await migrate(database)
    finally:
        await database.close()


async def _begin_again(path: Path, at_least: int) -> tuple[int, int]:
    database = Database(open_engine(f"sqlite+aiosqlite:///{path}"))
    try:
        return await raise_epoch(database, at_least=at_least)
    finally:
        await database.close()


def _set_aside(target: Path) -> tuple[list[str], int, dict[tuple[str, int], int]]:
    """Keeps the present database under another name, whole in one file, while it also stays where it is.

    Returns what to say, its epoch, and its heads (0 and none if it cannot be read).
    """
    if not target.exists():
        return [], 0, {}
    names = (f"{target.name}.replaced-{int(time.time()) + later}" for later in itertools.count())
    kept = next(path for path in map(target.with_name, names) if not path.exists())
    epoch, told = 0, list[str]()
    heads: dict[tuple[str, int], int] = {}
    try:
        with closing(sqlite3.connect(target)) as connection:
            # What is in the log beside it moves into the file itself, so that no log is left for its successor.
            connection.execute("PRAGMA journal_mode = DELETE")
        _, epoch, heads = _inspect(target)
    except (sqlite3.Error, StoreError) as error:
        told.append(f"WARNING: the replaced database could not be read: {error}; its epoch is unknown, see --at-least")
    for suffix in ("-wal", "-shm"):
        beside = target.with_name(target.name + suffix)
        if beside.exists():
            beside.rename(kept.with_name(kept.name + suffix))
    os.link(target, kept)
    return [f"the replaced database is kept as {kept}", *told], epoch, heads


def _copy(connection: sqlite3.Connection, path: Path) -> None:
    """A whole copy of one moment, on the disk when it returns; readable by its owner alone, for it holds keys."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(path)) as copy:
        connection.backup(copy, pages=_PAGES)
        copy.execute("PRAGMA journal_mode = DELETE")
        (found,) = copy.execute("PRAGMA quick_check").fetchone()
        if found != "ok":
            raise StoreError(f"the copy is damaged: {found}")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _inspect(path: Path) -> tuple[int, int, dict[tuple[str, int], int]]:
    """Schema version, epoch and the revisions of the heads. Raises StoreError if it is not Sidestep's."""
    with _translated(path), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        version, epoch = connection.execute("SELECT version, epoch FROM schema").fetchone()
        heads = connection.execute("SELECT tenant, lane, revision FROM heads").fetchall()
    return version, epoch, {(tenant, lane): revision for tenant, lane, revision in heads}


def _sqlite_file(settings: Settings, instead: str) -> Path:
    path = database_path(settings.database_url)
    if path is None:
        raise SettingsError(
            f"this is for SQLite; for PostgreSQL use {instead} (docs/operations.md, Backup and restore)"
        )
    return path


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}") from error


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
