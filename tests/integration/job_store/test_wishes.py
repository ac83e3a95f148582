"""Cancel, pause and resume, whatever the job is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import (
    InvalidTransition,
)
from scheduler.domain.job import JobStatus
from scheduler.store.leases import Wanted
from scheduler.store.outbox import OutboxKind
from tests.integration.store_kit import commit, create_job

if TYPE_CHECKING:
    from tests.integration.job_store.conftest import World


async def test_cancelling_a_queued_job_is_done_at_once(world: World) -> None:
    job = await world.queued()

    cancelled = await world.jobs.cancel(job.id)

    assert cancelled.status is JobStatus.CANCELLED
    assert cancelled.finished_at is not None
    assert OutboxKind.CLEAN_JOB in await world.sent_kinds(job.id)
    with pytest.raises(InvalidTransition):
        await world.jobs.cancel(job.id)


async def test_a_running_job_is_asked_and_its_worker_hinted(world: World) -> None:
    leased = await world.running()
    hints = (await world.sent_kinds(leased.job_id)).count(OutboxKind.JOB_HINT)

    asked = await world.jobs.cancel(leased.job_id)
    again = await world.jobs.cancel(leased.job_id)

    assert (asked.status, asked.cancel_requested) == (JobStatus.RUNNING, True)
    assert again == asked
    assert (await world.sent_kinds(leased.job_id)).count(OutboxKind.JOB_HINT) == hints + 1
    assert await world.leases.renew(leased.job_id, leased.epoch) == Wanted(cancel=True)
    await world.leases.confirm_cancel(leased.job_id, leased.epoch)
    assert await world.status(leased.job_id) is JobStatus.CANCELLED


async def test_a_running_job_pauses_when_its_worker_confirms(world: World) -> None:
    leased = await world.running()
    await world.jobs.pause(leased.job_id)
    assert await world.leases.renew(leased.job_id, leased.epoch) == Wanted(pause=True)
    await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(4))

    await world.leases.confirm_pause(leased.job_id, leased.epoch)

    assert await world.status(leased.job_id) is JobStatus.PAUSED
    assert await world.leases.claim(leased.job_id, "w") is None
    await world.jobs.resume(leased.job_id)
    again = await world.leases.claim(leased.job_id, "w")
    assert again is not None
    assert again.checkpoint is not None
    assert again.checkpoint.step == 4
    assert await world.leases.renew(leased.job_id, again.epoch) == Wanted()


async def test_a_pause_taken_back_in_time_leaves_the_job_queued(world: World) -> None:
    leased = await world.running()
    await world.jobs.pause(leased.job_id)
    await world.jobs.resume(leased.job_id)

    await world.leases.confirm_pause(leased.job_id, leased.epoch)

    assert await world.status(leased.job_id) is JobStatus.QUEUED


async def test_a_paused_job_can_be_cancelled(world: World) -> None:
    job = await world.queued()
    await world.jobs.pause(job.id)

    assert (await world.jobs.cancel(job.id)).status is JobStatus.CANCELLED


async def test_impossible_wishes_are_refused(world: World) -> None:
    checking = await create_job(world.db, world.tenant)
    running = await world.running()
    await world.jobs.cancel(running.job_id)

    for call, job_id in (
        (world.jobs.pause, checking.id),
        (world.jobs.resume, checking.id),
        (world.jobs.resume, running.job_id),
        (world.jobs.pause, running.job_id),  # it is being cancelled
    ):
        with pytest.raises(InvalidTransition):
            await call(job_id)
