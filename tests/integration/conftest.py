"""What seams are tested on: every database that Tandem runs on, and a folder for sockets."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from scheduler.store.database import Database, migrate
from scheduler.store.tables import metadata
from tests.integration.store_kit import redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    sqlite = request.param == "sqlite"
    url = (
        f"sqlite+aiosqlite:///{tmp_path}/t.db"
        if sqlite
        else request.getfixturevalue("postgres").url
    )
    await asyncio.gather(migrate(url), migrate(url))
    database = Database(url)
    if not sqlite:
        async with database.begin() as conn:
            await conn.execute(text(f"TRUNCATE {', '.join(metadata.tables)}"))
    yield database
    await database.close()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="tandem-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def redis_url(short_dir: Path) -> AsyncIterator[str]:
    """A running Redis."""
    async with redis_server(short_dir):
        yield f"unix://{short_dir}/redis.sock"
