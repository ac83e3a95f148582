"""A store on every database that Tandem runs on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from scheduler.store.database import Database, migrate
from scheduler.store.tables import metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


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
