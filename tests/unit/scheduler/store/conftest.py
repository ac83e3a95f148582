"""A freshly migrated SQLite database per test, copied from one made once."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from scheduler.store.database import Database, migrate
from scheduler.store.tenants import Tenants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from scheduler.domain.tenant import Tenant


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "tandem.db"
    asyncio.run(migrate(f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture
async def db(migrated_file: Path, tmp_path: Path) -> AsyncIterator[Database]:
    shutil.copy(migrated_file, tmp_path / "tandem.db")
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/tandem.db")
    yield database
    await database.close()


@pytest.fixture
async def tenant(db: Database) -> Tenant:
    return await Tenants(db).create("acme")


@pytest.fixture
async def other_tenant(db: Database) -> Tenant:
    return await Tenants(db).create("rival")
