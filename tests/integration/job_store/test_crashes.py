"""Crashes: the job goes on from its checkpoint, and not for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scheduler.domain.job import JobStatus
from scheduler.store.leases import MAX_CRASHES, CheckpointRef
from tests.integration.store_kit import commit

if TYPE_CHECKING:
    from tests.integration.job_store.conftest import World


async def test_a_lost_worker_puts_its_job_back(world: World) -> None:
    leased = await world.running()
    await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(50))
    await world.expire_lease(leased.job_id)

    assert await world.leases.reap() == [leased.job_id]

    again = await world.leases.claim(leased.job_id, "w2")
    assert again is not None
    assert again.checkpoint == CheckpointRef(
        step=50, uri="checkpoints/50", manifest_sha256=f"{50:064x}"
    )
    assert again.next_version == 2
    assert (await world.messages(leased.job_id))[-1] == "Training resumes at step 50."


async def test_three_crashes_without_a_checkpoint_fail_the_job(world: World) -> None:
    job = await world.queued()
    for _ in range(MAX_CRASHES):
        leased = await world.leases.claim(job.id, "w")
        assert leased is not None
        await world.leases.release(job.id, leased.epoch, crashed=True)

    failed = await world.jobs.get(job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "worker_crashed"


async def test_a_checkpoint_forgives_earlier_crashes(world: World) -> None:
    job = await world.queued()
    for step in range(1, 2 * MAX_CRASHES):
        leased = await world.leases.claim(job.id, "w")
        assert leased is not None
        await world.leases.commit_checkpoint(job.id, leased.epoch, commit(step))
        await world.leases.release(job.id, leased.epoch, crashed=True)

    assert await world.status(job.id) is JobStatus.QUEUED


async def test_the_same_checkpoint_again_forgives_nothing(world: World) -> None:
    job = await world.queued()
    for _ in range(MAX_CRASHES + 1):
        leased = await world.leases.claim(job.id, "w")
        if leased is None:
            break
        await world.leases.commit_checkpoint(job.id, leased.epoch, commit(7))
        await world.leases.release(job.id, leased.epoch, crashed=True)

    assert await world.status(job.id) is JobStatus.FAILED


async def test_draining_is_no_crash(world: World) -> None:
    job = await world.queued()
    for _ in range(MAX_CRASHES + 1):
        leased = await world.leases.claim(job.id, "w")
        assert leased is not None
        await world.leases.release(job.id, leased.epoch)

    assert await world.status(job.id) is JobStatus.QUEUED


@pytest.mark.parametrize(
    ("wish", "status"), [("cancel", JobStatus.CANCELLED), ("pause", JobStatus.PAUSED)]
)
async def test_a_wish_outlives_the_worker_that_heard_it(
    world: World, wish: str, status: JobStatus
) -> None:
    leased = await world.running()
    await getattr(world.jobs, wish)(leased.job_id)
    await world.expire_lease(leased.job_id)

    await world.leases.reap()

    assert await world.status(leased.job_id) is status
