"""A whole database as one file, and back: of a running service, at one moment."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, inspect, make_url

from scheduler.domain.errors import Conflict, InvalidInput, NotFound
from scheduler.durable import durable_file
from scheduler.store.database import Database, alembic_config

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Dump(Protocol):
    """How one kind of database becomes a file."""

    def save(self, file: Path) -> None:
        """Write the committed state of this moment; readers and writers go on meanwhile."""

    def load(self, file: Path) -> None:
        """Fill an empty database."""


class SqliteDump:
    """SQLite's online backup; in WAL mode its one step reads a snapshot and locks nobody out."""

    def __init__(self, url: URL) -> None:
        self._path = Path(url.database or "")

    def save(self, file: Path) -> None:
        """Copy the database.

        Raises:
            NotFound: there is none.
        """
        if not self._path.is_file():
            raise NotFound(f"There is no database at {self._path}; name the service's --data.")
        with closing(sqlite3.connect(self._path)) as source, closing(sqlite3.connect(file)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it

    def load(self, file: Path) -> None:
        """Put the copy in place of an empty database, all of it or nothing."""
        for log in ("-wal", "-shm"):
            self._path.with_name(self._path.name + log).unlink(missing_ok=True)
        with file.open("rb") as source, durable_file(self._path) as target:
            shutil.copyfileobj(source, target)


class PostgresDump:
    """PostgreSQL's own programs; the password goes by environment, where no `ps` shows it."""

    def __init__(self, url: URL) -> None:
        self._environment = os.environ | {"PGPASSWORD": str(url.password or "")}
        self._url = URL.create(
            "postgresql", url.username, None, url.host, url.port, url.database, url.query
        ).render_as_string()

    def save(self, file: Path) -> None:
        """Run pg_dump; it reads one snapshot."""
        self._run("pg_dump", "--format=custom", "--no-owner", f"--file={file}", self._url)

    def load(self, file: Path) -> None:
        """Run pg_restore in one transaction."""
        options = ("--single-transaction", "--exit-on-error", "--no-owner")
        self._run("pg_restore", *options, f"--dbname={self._url}", str(file))

    def _run(self, program: str, *arguments: str) -> None:
        try:
            subprocess.run(
                [program, *arguments],
                env=self._environment, check=True, text=True, stderr=subprocess.PIPE,
            )  # fmt: skip
        except FileNotFoundError:
            raise InvalidInput(
                f"{program} is not installed; a PostgreSQL database needs its client programs, "
                "of the server's version or newer."
            ) from None
        except subprocess.CalledProcessError as error:
            reason = str(error.stderr).strip().rpartition("\n")[2]
            raise Conflict(f"{program} failed: {reason}") from None


DUMPS: dict[str, type[SqliteDump | PostgresDump]] = {
    "sqlite": SqliteDump,
    "postgresql": PostgresDump,
}


def database_kind(url: str) -> str:
    """SQLAlchemy's name of the database behind a URL."""
    return make_url(url).get_backend_name()


def dump_of(url: str) -> Dump:
    """What saves and loads the database at a URL."""
    return DUMPS[database_kind(url)](make_url(url))


async def schema_revision(url: str) -> str | None:
    """Revision of a database's schema; None if it has no table yet, of ours or anybody's.

    Raises:
        Conflict: it holds tables that are not ours.
    """

    def look(connection: Connection) -> str | None:
        revision = MigrationContext.configure(connection).get_current_revision()
        if revision is None and inspect(connection).get_table_names():
            raise Conflict("The database holds tables of something else; name an empty one.")
        return revision

    database = Database(url)
    try:
        async with database.read() as connection:
            return await connection.run_sync(look)
    finally:
        await database.close()


def knows_schema(revision: str) -> bool:
    """Whether this version has the migration that made a schema."""
    script = ScriptDirectory.from_config(alembic_config())
    return revision in {known.revision for known in script.walk_revisions()}
