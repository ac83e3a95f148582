"""The outbox: hints in order, again when nobody took the job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import update

from scheduler.store.checks import Checks
from scheduler.store.outbox import Outbox, OutboxKind
from scheduler.store.tables import jobs as jobs_table
from tests.integration.store_kit import create_job

if TYPE_CHECKING:
    from tests.integration.job_store.conftest import World


async def test_rows_come_in_order_until_they_are_marked(world: World) -> None:
    first = await create_job(world.db, world.tenant)
    second = await create_job(world.db, world.tenant)
    outbox = Outbox(world.db)
    rows = await outbox.unsent()
    assert [row.job_id for row in rows] == [first.id, second.id]

    await outbox.mark_sent(rows[:1])

    assert await outbox.unsent() == rows[1:]


async def test_a_waiting_job_is_hinted_again_but_not_a_held_one(world: World) -> None:
    unchecked = await create_job(world.db, world.tenant)
    being_checked = await create_job(world.db, world.tenant)
    await Checks(world.db).begin(being_checked.id)
    queued = await world.queued()
    await world.running()
    outbox = Outbox(world.db)
    await outbox.mark_sent(await outbox.unsent())
    assert await outbox.resend_waiting(60.0) == []
    async with world.db.begin() as conn:
        await conn.execute(update(jobs_table).values(hinted_at=1.0))

    assert set(await outbox.resend_waiting(60.0)) == {unchecked.id, queued.id}

    kinds = {row.job_id: row.kind for row in await outbox.unsent()}
    assert kinds == {
        unchecked.id: OutboxKind.VALIDATE_JOB,
        queued.id: OutboxKind.JOB_HINT,
    }
    assert await outbox.resend_waiting(60.0) == []
