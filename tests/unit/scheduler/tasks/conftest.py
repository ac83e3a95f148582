"""A task context on a real database, object tree and model folder."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from scheduler.store.database import Database, migrate
from scheduler.store.objects import ObjectStore
from scheduler.store.tenants import Tenants
from scheduler.tasks.context import TaskContext
from scheduler.tasks.encode import encode_data_set
from tests.integration.store_kit import make_model_dir

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from scheduler.domain.tenant import Tenant
    from scheduler.tasks.encode import EncodedSummary


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_dir(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture
async def context(tmp_path: Path, model_dir: Path) -> AsyncIterator[TaskContext]:
    url = f"sqlite+aiosqlite:///{tmp_path}/t.db"
    await migrate(url)

    async def encode(
        folder: Path, source: Path, target: Path, enough_tokens: int | None
    ) -> EncodedSummary:
        return await asyncio.to_thread(encode_data_set, folder, source, target, enough_tokens)

    db = Database(url)
    objects = ObjectStore(f"file://{tmp_path}/objects")
    yield TaskContext(db=db, objects=objects, model_dirs={"m": model_dir}, encode=encode)
    await db.close()


@pytest.fixture
async def tenant(context: TaskContext) -> Tenant:
    return await Tenants(context.db).create("acme")
