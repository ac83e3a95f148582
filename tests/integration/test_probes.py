"""What health checks ask of processes without a port: the worker's registry, the relay's outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from scheduler.domain.messages import WorkerCapabilities, WorkerInfo
from scheduler.probe import OVERDUE_S, is_sending
from scheduler.settings import SchedulerSettings
from scheduler.store.channels import connect_channel
from scheduler.store.clock import DbNow
from scheduler.store.database import Database, migrate
from scheduler.store.tables import outbox
from scheduler.store.tenants import Tenants
from tests.integration.store_kit import create_job, redis_server
from workers.probe import is_announced
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from pathlib import Path


def _announced(worker_id: str) -> WorkerInfo:
    capabilities = WorkerCapabilities(
        base_models=(), peft_methods={}, optimizers={}, objectives={}, max_rank=8,
        max_num_sequences=4,
    )  # fmt: skip
    return WorkerInfo(worker_id=worker_id, boot_id="1", capabilities=capabilities)


async def test_a_worker_is_well_while_the_registry_lists_it(
    unused_tcp_port: int, tmp_path: Path
) -> None:
    async with redis_server(tmp_path, unused_tcp_port):
        url = f"redis://127.0.0.1:{unused_tcp_port}/0"
        mine = WorkerSettings(data_dir=tmp_path, channel_url=url, worker_id="mine")
        other = WorkerSettings(data_dir=tmp_path, channel_url=url, worker_id="other")
        channel = connect_channel(url)
        await channel.announce(_announced("mine"), ttl_s=30)
        await channel.close()

        assert await is_announced(mine)
        assert not await is_announced(other)


@pytest.mark.parametrize(("waiting_s", "is_well"), [(0.0, True), (OVERDUE_S + 1, False)])
async def test_the_relay_is_well_until_a_hint_is_overdue(
    tmp_path: Path, waiting_s: float, *, is_well: bool
) -> None:
    settings = SchedulerSettings(data_dir=tmp_path)
    await migrate(settings.database_url)
    database = Database(settings.database_url)
    tenant = await Tenants(database).create("acme")
    await create_job(database, tenant)  # its first hint waits from now on
    async with database.begin() as conn:
        await conn.execute(update(outbox).values(created_at=DbNow() - waiting_s))
    await database.close()

    assert await is_sending(settings) is is_well
