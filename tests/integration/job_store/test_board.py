"""What operators see across tenants, and the curve that a chart is drawn from."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import NotFound
from scheduler.domain.job import JobStatus
from scheduler.store.board import Board
from scheduler.store.jobs import Jobs
from scheduler.store.usage import Usage
from tests.integration.store_kit import commit, create_job, progress

if TYPE_CHECKING:
    from tests.integration.job_store.conftest import World


async def test_the_board_shows_every_tenants_jobs_newest_first_with_their_leases(
    world: World,
) -> None:
    held = await world.running()
    waiting = await create_job(world.db, world.rival)

    newest, oldest = await Board(world.db).jobs(limit=10)

    assert (newest.job.id, newest.tenant, newest.lease) == (waiting.id, "rival", None)
    assert (oldest.job.id, oldest.tenant, oldest.num_crashes) == (held.job_id, "acme", 0)
    assert oldest.lease is not None
    assert (oldest.lease.owner, oldest.lease.epoch) == ("w1", held.epoch)
    assert 20 < oldest.lease.left_s <= 30
    assert len(await Board(world.db).jobs(limit=1)) == 1


async def test_a_lease_that_has_run_out_has_less_than_nothing_left(world: World) -> None:
    held = await world.running()
    await world.expire_lease(held.job_id)

    (job,) = await Board(world.db).jobs(limit=10)

    assert job.lease is not None
    assert job.lease.left_s < 0


async def test_the_board_shows_every_tenants_adapters_as_their_owners_see_them(
    world: World,
) -> None:
    held = await world.running()
    await world.leases.commit_checkpoint(held.job_id, held.epoch, commit(1))

    (entry,) = await Board(world.db).adapters(limit=10)

    assert (entry.tenant_id, entry.tenant) == (world.tenant.id, "acme")
    assert (entry.adapter.job_id, entry.adapter.shared_by) == (held.job_id, None)
    assert [version.digest for version in entry.adapter.versions] == ["d1"]


async def test_the_outbox_tells_its_backlog_and_its_age(world: World) -> None:
    empty = await Board(world.db).outbox()

    await create_job(world.db, world.tenant)

    backlog = await Board(world.db).outbox()
    assert (empty.num_unsent, empty.oldest_s) == (0, 0.0)
    assert backlog.num_unsent == 1
    assert 0 <= backlog.oldest_s < 10


@pytest.mark.parametrize(
    ("num_steps", "max_points", "kept"),
    [
        (0, 10, []),
        (1, 10, [1]),
        (10, 10, list(range(1, 11))),
        (11, 10, [1, 3, 5, 7, 9, 11]),  # every ceil(11 / 10) = 2nd, counted from the newest
        (100, 3, [32, 66, 100]),  # every ceil(100 / 3) = 34th
    ],
)
async def test_a_curve_is_thinned_evenly_and_keeps_the_newest_step(
    world: World, num_steps: int, max_points: int, kept: list[int]
) -> None:
    held = await world.running()
    steps = (progress(held.job_id, held.epoch, step) for step in range(1, num_steps + 1))
    await world.leases.record_progress(*steps)

    curve = await world.jobs.curve(held.job_id, max_points=max_points)

    assert [point.step for point in curve] == kept


async def test_a_curve_is_seen_by_its_tenant_and_by_operators(world: World) -> None:
    held = await world.running()
    await world.leases.record_progress(progress(held.job_id, held.epoch, 2, valid_loss=0.7))

    (point,) = await world.jobs.curve(held.job_id, max_points=10)

    assert (point.step, point.train_loss, point.valid_loss) == (2, 0.5, 0.7)
    assert await Board(world.db).curve(held.job_id, max_points=10) == (point,)
    with pytest.raises(NotFound):
        await Jobs(world.db).for_tenant(world.rival.id).curve(held.job_id, max_points=10)
    with pytest.raises(NotFound):
        await Board(world.db).curve("ftjob-none", max_points=10)


async def test_usage_is_summed_over_days_by_tenant_and_model(world: World) -> None:
    usage = Usage(world.db)
    for day in (date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 3)):
        await usage.add(world.tenant.id, day, "m", prompt_tokens=1, output_tokens=10)
    await usage.add(world.rival.id, date(2026, 1, 3), "m", trained_tokens=100)

    rows = await usage.since(date(2026, 1, 2))
    (mine,) = await usage.for_tenant(world.tenant.id).since(date(2026, 1, 2))

    assert [(row.tenant, row.num_tokens) for row in rows] == [("rival", 100), ("acme", 22)]
    assert mine == rows[1]
    assert (mine.prompt_tokens, mine.output_tokens, mine.trained_tokens) == (2, 20, 0)


@pytest.mark.parametrize("ending", ["succeeds", "is cancelled"])
async def test_what_a_job_trained_is_usage_once_it_has_ended(world: World, ending: str) -> None:
    held = await world.running()
    await world.leases.record_progress(progress(held.job_id, held.epoch, 3))  # 30 tokens
    assert (await Usage(world.db).total(world.tenant.id)).trained_tokens == 0

    if ending == "succeeds":
        await world.leases.finish(held.job_id, held.epoch, commit(3))
    else:
        await world.leases.confirm_cancel(held.job_id, held.epoch)

    assert (await Usage(world.db).total(world.tenant.id)).trained_tokens == 30


async def test_running_jobs_come_with_their_newest_step_and_are_tallied(world: World) -> None:
    held, expired = await world.running(), await world.running()
    await create_job(world.db, world.rival)
    await world.leases.record_progress(*(progress(held.job_id, held.epoch, n) for n in (1, 2)))
    await world.expire_lease(expired.job_id)

    running = {job.job_id: job for job in await Board(world.db).running()}
    tally = await Board(world.db).tally()

    assert set(running) == {held.job_id, expired.job_id}
    newest = running[held.job_id].newest
    assert newest is not None
    assert newest.step == 2
    assert running[expired.job_id].newest is None
    assert tally.by_status == {
        **dict.fromkeys(JobStatus, 0),
        JobStatus.RUNNING: 2,
        JobStatus.VALIDATING_FILES: 1,
    }
    assert tally.num_expired == 1
