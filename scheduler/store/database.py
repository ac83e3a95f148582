"""The SQL database: one code for SQLite (embedded) and PostgreSQL (cluster)."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BUSY_TIMEOUT_S = 5.0
# A process that stands still inside a transaction keeps its row locks, and nobody could take its
# jobs over. Ours do nothing but SQL there.
IDLE_TRANSACTION_S = 5.0
MIGRATION_LOCK = 7_304_251_119  # any constant: advisory lock of PostgreSQL during migrations
# It does not answer, has ended the session, or more wait for a connection than there are.
DATABASE_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)
_SQLITE_PRAGMAS = (
    f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}",
    "PRAGMA synchronous=FULL",  # NORMAL may lose the last commits on power loss
    "PRAGMA foreign_keys=ON",
)
_RETRY_S = 0.005


class Database:
    """A pool of connections to one database.

    On SQLite the writers of a process queue in order: SQLite's own busy handler is not fair.

    Args:
        url: `sqlite+aiosqlite:///PATH` or `postgresql+psycopg://...`.
    """

    def __init__(self, url: str) -> None:
        self._engine = _sqlite_engine(url) if _is_sqlite(url) else _server_engine(url)
        self._writer = asyncio.Lock() if _is_sqlite(url) else None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write; commits at the end, rolls back on an exception."""
        async with AsyncExitStack() as stack:
            if self._writer is not None:
                await stack.enter_async_context(self._writer)
            yield await stack.enter_async_context(_whole(self._engine.begin()))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads; never waits for writers on SQLite."""
        async with self._engine.connect() as conn:
            await conn.execution_options(tandem_read_only=True)
            yield conn

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


class _SqliteConnection(sqlite3.Connection):
    """A connection whose closing ends its transaction.

    SQLite keeps a closed connection, and the lock it holds, while a cursor of it is alive; a
    statement that was cancelled before its rows were fetched leaves such a cursor to the collector.
    """

    def close(self) -> None:
        """Roll back, then close."""
        self.rollback()
        super().close()


@asynccontextmanager
async def _whole(
    transaction: AbstractAsyncContextManager[AsyncConnection],
) -> AsyncIterator[AsyncConnection]:
    """A transaction whose beginning is never abandoned half-way.

    A task that is cancelled while its BEGIN waits for SQLite's lock would get that lock later, in
    the driver's thread, with nobody left to give it back.
    """
    beginning = asyncio.ensure_future(transaction.__aenter__())
    try:
        conn = await asyncio.shield(beginning)
    except asyncio.CancelledError as cancelled:
        while not beginning.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([beginning])
        if not beginning.cancelled() and beginning.exception() is None:
            await transaction.__aexit__(type(cancelled), cancelled, cancelled.__traceback__)
        raise
    async with AsyncExitStack() as ending:
        ending.push_async_exit(transaction)
        yield conn


async def migrate(url: str) -> None:
    """Bring the schema to the newest version; safe when several processes start at once."""
    db = Database(url)
    try:
        async with db.begin() as conn:
            if not _is_sqlite(url):  # SQLite is locked already, by BEGIN IMMEDIATE
                await conn.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            await conn.run_sync(upgrade)
    finally:
        await db.close()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations that are missing, up to `revision`, in the connection's transaction."""
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def alembic_config() -> Config:
    """Where Alembic finds the migrations."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _is_sqlite(url: str) -> bool:
    return make_url(url).get_backend_name() == "sqlite"


def _server_engine(url: str) -> AsyncEngine:
    engine = create_async_engine(url, pool_pre_ping=True)
    event.listen(engine.sync_engine, "connect", _prepare_postgres)
    return engine


def _sqlite_engine(url: str) -> AsyncEngine:
    path = make_url(url).database
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_S, "factory": _SqliteConnection}
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_postgres(dbapi_connection: Any, _record: object) -> None:
    cursor = dbapi_connection.cursor()
    idle_ms = int(IDLE_TRANSACTION_S * 1000)
    cursor.execute(f"SET idle_in_transaction_session_timeout = {idle_ms}")
    cursor.close()
    dbapi_connection.commit()


def _prepare_sqlite(dbapi_connection: Any, _record: object) -> None:
    dbapi_connection.isolation_level = None  # transactions begin where _begin_sqlite says
    cursor = dbapi_connection.cursor()
    for pragma in _SQLITE_PRAGMAS:
        cursor.execute(pragma)
    _use_wal(cursor)
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """Switch the file to WAL, once for good; the busy timeout does not cover this statement.

    A process that does the same at the same moment holds the lock for that one statement only.
    """
    give_up_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up_s:
                raise
            time.sleep(_RETRY_S)
        else:
            return


def _begin_sqlite(conn: Connection) -> None:
    """Take the write lock at the start: a later upgrade may fail even with a timeout."""
    reads = conn.get_execution_options().get("tandem_read_only", False)
    conn.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
