from __future__ import annotations

import asyncio
import gc
import sqlite3
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from scheduler.store.clock import DbNow
from scheduler.store.database import Database, migrate, upgrade
from scheduler.store.tables import metadata, tenants
from scheduler.store.tenants import Tenants

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_migrations_make_exactly_the_tables(db: Database) -> None:
    async with db.read() as conn:
        differences = await conn.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)
        )

    assert differences == []


async def test_tenants_of_the_first_schema_are_in_the_default_class_afterwards(
    tmp_path: Path,
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/old.db"
    row = {"id": "org-1", "name": "acme", "is_admin": False, "weight": 2.0, "created_at": 0.0}
    db = Database(url)
    async with db.begin() as conn:
        await conn.run_sync(lambda sync: upgrade(sync, "0001"))
        columns = ", ".join(row)
        await conn.execute(
            text(f"INSERT INTO tenants ({columns}) VALUES (:{', :'.join(row)})"), row
        )

    await migrate(url)

    (tenant,) = await Tenants(db).list()
    assert (tenant.name, tenant.weight, tenant.service_class) == ("acme", 2.0, "default")
    await db.close()


async def test_a_process_of_the_version_before_goes_on_beside_rate_limits(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new.db"
    await migrate(url)
    db = Database(url)
    limited = await Tenants(db).create("limited", tokens_per_minute=5)

    async with db.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO tenants (id, name, is_admin, weight, service_class, created_at)"
                " VALUES ('org-1', 'older', 0, 1, 'default', 0)"
            )
        )
        await conn.execute(text("UPDATE tenants SET weight = 2"))

    assert (await Tenants(db).get("org-1")).rate_limits == {}
    assert (await Tenants(db).get(limited.id)).tokens_per_minute == 5
    await db.close()


async def test_processes_that_migrate_at_once_all_succeed(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new/tandem.db"

    await asyncio.gather(*(migrate(url) for _ in range(4)))

    db = Database(url)
    assert await Tenants(db).list() == []
    await db.close()


async def test_migrating_again_keeps_the_data(db: Database, tmp_path: Path) -> None:
    tenant = await Tenants(db).create("acme")

    await migrate(f"sqlite+aiosqlite:///{tmp_path}/tandem.db")

    assert await Tenants(db).list() == [tenant]


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 5000)],
)
async def test_sqlite_is_set_up_for_durability(db: Database, pragma: str, value: object) -> None:
    async with db.begin() as conn:
        assert await conn.scalar(text(f"PRAGMA {pragma}")) == value


async def test_an_exception_takes_the_transaction_back(db: Database) -> None:
    async def insert_twice() -> None:
        async with db.begin() as conn:
            row = {"id": "a", "name": "a", "is_admin": False, "weight": 1.0, "created_at": 0.0}
            await conn.execute(tenants.insert().values(row))
            await conn.execute(tenants.insert().values(row))

    with pytest.raises(IntegrityError):
        await insert_twice()

    assert await Tenants(db).list() == []


async def test_a_reader_does_not_wait_for_a_writer(db: Database) -> None:
    async with db.begin() as writing:
        await writing.execute(
            tenants.insert().values(id="a", name="a", is_admin=False, weight=1.0, created_at=0.0)
        )
        async with asyncio.timeout(1), db.read() as conn:
            assert await conn.scalar(select(func.count()).select_from(tenants)) == 0


async def test_two_processes_writers_do_not_lose_updates(db: Database, tmp_path: Path) -> None:
    """Read-then-write from two pools: a deferred transaction would fail or lose a count here."""
    await Tenants(db).create("acme")
    other = Database(f"sqlite+aiosqlite:///{tmp_path}/tandem.db")

    async def add_one(database: Database) -> None:
        async with database.begin() as conn:
            weight = await conn.scalar(select(tenants.c.weight))
            assert weight is not None
            await conn.execute(tenants.update().values(weight=weight + 1))

    await asyncio.gather(*(add_one(pool) for pool in [db, other] * 10))

    assert (await Tenants(db).get_by_name("acme")).weight == 21.0
    await other.close()


async def test_the_databases_clock_counts_fractions_of_unix_seconds(db: Database) -> None:
    async with db.read() as conn:
        first = await conn.scalar(select(DbNow()))
        await asyncio.sleep(0.05)
        second = await conn.scalar(select(DbNow()))

    assert 0.04 < second - first < 1.0
    assert first > 1_700_000_000


async def test_a_write_cancelled_at_any_moment_leaves_no_lock(db: Database, tmp_path: Path) -> None:
    """SQLite's own lock: a half-fetched statement used to hold it until the next collection."""
    for name in "abc":
        await Tenants(db).create(name)
    add_one = tenants.update().values(weight=tenants.c.weight + 1).returning(tenants)

    async def write() -> None:
        async with db.begin() as conn:
            (await conn.execute(add_one)).all()
            (await conn.execute(add_one)).all()

    probe = sqlite3.connect(tmp_path / "tandem.db", timeout=1.0, isolation_level=None)
    gc.disable()
    try:
        for number in range(150):
            writing = asyncio.create_task(write())
            await asyncio.sleep(number * 2e-5)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            probe.execute("BEGIN IMMEDIATE")
            probe.execute("ROLLBACK")
    finally:
        gc.enable()
        probe.close()
