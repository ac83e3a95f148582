"""Leases: who lost one can write nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import (
    LostLease,
)
from scheduler.domain.job import JobStatus
from scheduler.store.leases import Wanted
from tests.integration.store_kit import commit, progress

if TYPE_CHECKING:
    from tests.integration.job_store.conftest import World


async def test_a_zombie_can_write_nothing(world: World) -> None:
    old = await world.running()
    await world.leases.commit_checkpoint(old.job_id, old.epoch, commit(10))
    await world.expire_lease(old.job_id)
    assert await world.leases.reap() == [old.job_id]
    new = await world.leases.claim(old.job_id, "w2")
    assert new is not None
    assert new.epoch > old.epoch
    before = (
        await world.jobs.get(old.job_id),
        await world.messages(old.job_id),
        await world.jobs.checkpoints(old.job_id),
    )

    leases, job_id, epoch = world.leases, old.job_id, old.epoch
    for write in (
        leases.renew(job_id, epoch),
        leases.record_progress(progress(job_id, epoch, 11)),
        leases.commit_checkpoint(job_id, epoch, commit(20)),
        leases.prune_checkpoints(job_id, epoch, keep=0),
        leases.finish(job_id, epoch, commit(30)),
        leases.fail(job_id, epoch, "c", "m"),
        leases.confirm_cancel(job_id, epoch),
        leases.confirm_pause(job_id, epoch),
        leases.release(job_id, epoch),
    ):
        with pytest.raises(LostLease):
            await write

    assert before == (
        await world.jobs.get(old.job_id),
        await world.messages(old.job_id),
        await world.jobs.checkpoints(old.job_id),
    )


async def test_a_late_worker_keeps_its_job_while_nobody_took_it(world: World) -> None:
    leased = await world.running(lease_s=0.0)

    assert await world.leases.renew(leased.job_id, leased.epoch) == Wanted()

    assert await world.leases.reap() == []


async def test_a_live_lease_is_not_reaped(world: World) -> None:
    leased = await world.running()

    assert await world.leases.reap() == []
    assert await world.status(leased.job_id) is JobStatus.RUNNING


async def test_nothing_can_be_written_about_a_finished_job(world: World) -> None:
    leased = await world.running()
    await world.leases.finish(leased.job_id, leased.epoch, commit(5))

    with pytest.raises(LostLease):
        await world.leases.fail(leased.job_id, leased.epoch, "c", "m")
    with pytest.raises(LostLease):
        await world.leases.finish(leased.job_id, leased.epoch, commit(6))
