"""Claiming a job: one worker gets it, in order of priority and age."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.job import JobStatus

if TYPE_CHECKING:
    from tests.integration.job_store.conftest import World


async def test_of_racing_workers_one_gets_the_job(world: World) -> None:
    job = await world.queued()

    claims = await asyncio.gather(
        *(world.leases.claim(job.id, f"w{number}") for number in range(6))
    )

    (winner,) = [claim for claim in claims if claim is not None]
    assert winner.spec == job.spec
    assert (winner.train_key, winner.checkpoint, winner.next_version) == ("t", None, 1)
    assert await world.status(job.id) is JobStatus.RUNNING


async def test_jobs_come_by_priority_then_age_and_only_for_known_models(world: World) -> None:
    first = await world.queued()
    second = await world.queued()
    urgent = await world.queued(priority=5)
    await world.queued(base_model="other")
    await world.running()

    assert await world.leases.claimable({"m"}) == [urgent.id, first.id, second.id]
    assert await world.leases.claimable([]) == []


@pytest.mark.parametrize("action", ["cancel", "pause"])
async def test_an_unwanted_job_is_not_claimed(world: World, action: str) -> None:
    job = await world.queued()
    await getattr(world.jobs, action)(job.id)

    assert await world.leases.claimable({"m"}) == []
    assert await world.leases.claim(job.id, "w1") is None
