"""The registry's migration keeps what is there, and what the version before goes on writing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

import scheduler.store.migrations
from scheduler.store.adapter_orders import Orders
from scheduler.store.adapters import Adapters
from scheduler.store.database import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

OLD, NEW = "0002", "head"
OLD_ROWS = (
    "INSERT INTO tenants (id, name, is_admin, weight, created_at) VALUES ('t{n}', 't{n}', 0, 1, 0)",
    "INSERT INTO jobs (id, tenant_id, status, base_model, priority, spec, training_file, suffix,"
    " adapter_id, model_name, hyperparameters, metadata, created_at, trained_tokens, result_files,"
    " epoch, cancel_requested, pause_requested, num_crashes, num_checks, hinted_at) VALUES"
    " ('j{n}', 't{n}', 'succeeded', 'm', 0, '{{}}', 'f', '', 'a{n}', 'ft:{n}', '{{}}', '{{}}', 0,"
    " 0, '[]', 1, 0, 0, 0, 0, 0)",
    "INSERT INTO adapters (id, tenant_id, job_id, base_model, model_name, final_version,"
    " created_at) VALUES ('a{n}', 't{n}', 'j{n}', 'm', 'ft:{n}', 2, 0)",
    "INSERT INTO adapter_versions (adapter_id, version, name, step, digest, uri, num_bytes,"
    " created_at) VALUES ('a{n}', 1, 'ft:{n}:ckpt-step-1', 1, 'd1', 'u1', 5, 0),"
    " ('a{n}', 2, 'ft:{n}:ckpt-step-2', 2, 'd2', 'u2', 5, 0)",
)


def move(change: Callable[[Config, str], None], revision: str) -> Callable[[Connection], None]:
    """An upgrade or a downgrade, to be run on a connection."""

    def run(connection: Connection) -> None:
        config = Config()
        folder = Path(next(iter(scheduler.store.migrations.__path__)))
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        change(config, revision)

    return run


async def write_old_rows(db: Database, name: str) -> None:
    async with db.begin() as conn:
        for row in OLD_ROWS:
            await conn.execute(text(row.format(n=name)))


async def rows_of(db: Database) -> list[tuple[str, int, str]]:
    query = "SELECT adapter_id, version, uri FROM adapter_versions ORDER BY adapter_id, version"
    async with db.read() as conn:
        return [(row[0], row[1], row[2]) for row in await conn.execute(text(query))]


@pytest.fixture
async def old(tmp_path: Path) -> AsyncIterator[Database]:
    db = Database(f"sqlite+aiosqlite:///{tmp_path}/old.db")
    async with db.begin() as conn:
        await conn.run_sync(move(command.upgrade, OLD))
    await write_old_rows(db, "x")
    yield db
    await db.close()


async def test_versions_survive_the_way_there_and_back(old: Database) -> None:
    before = await rows_of(old)

    async with old.begin() as conn:
        await conn.run_sync(move(command.upgrade, NEW))
    there = await rows_of(old)
    async with old.begin() as conn:
        await conn.run_sync(move(command.downgrade, OLD))

    assert len(before) == 2
    assert there == before
    assert await rows_of(old) == before


async def test_what_the_version_before_writes_is_read(old: Database) -> None:
    async with old.begin() as conn:
        await conn.run_sync(move(command.upgrade, NEW))

    await write_old_rows(old, "y")

    for name in "xy":
        view = Adapters(old).for_tenant(f"t{name}")
        (adapter,) = await view.list()
        assert adapter.published_version == 2
        assert not adapter.is_pinned
        assert [version.origin for version in adapter.versions] == [None, None]
        assert (await view.resolve(f"ft:{name}")).ref.version == 2
        assert (await view.resolve(f"ft:{name}@1")).ref.version == 1


async def test_merged_models_become_orders_and_merges_again(old: Database) -> None:
    async with old.begin() as conn:
        await conn.run_sync(move(command.upgrade, "0003"))
        await conn.execute(
            text(
                "INSERT INTO adapter_merges (adapter_id, version, tenant_id, status, uri, files,"
                " created_at, num_tries) VALUES ('ax', 2, 'tx', 'succeeded', 'u', '{\"a\": 1}',"
                " 0, 1)"
            )
        )
        await conn.run_sync(move(command.upgrade, "head"))

    order = await Orders(old).for_tenant("tx").finished_export("ax", 2)

    assert (order.id, order.uri, order.files) == ("ax@2", "u", {"a": 1})
    async with old.begin() as conn:
        await conn.run_sync(move(command.downgrade, "0003"))
        rows = (await conn.execute(text("SELECT adapter_id, version FROM adapter_merges"))).all()
    assert [tuple(row) for row in rows] == [("ax", 2)]
