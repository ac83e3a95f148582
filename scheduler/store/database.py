"""The SQL database: one code for SQLite (embedded) and PostgreSQL (cluster)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection


class Database:
    """A pool of connections to one database.

    Args:
        url: `sqlite+aiosqlite:///PATH` or `postgresql+psycopg://...`.
    """

    def __init__(self, url: str) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write; commits at the end, rolls back on an exception."""
        raise NotImplementedError
        yield

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads; never waits for writers on SQLite."""
        raise NotImplementedError
        yield

    async def close(self) -> None:
        """Close all connections."""
        raise NotImplementedError


async def migrate(url: str) -> None:
    """Bring the schema to the newest version; safe when several processes start at once."""
    raise NotImplementedError
