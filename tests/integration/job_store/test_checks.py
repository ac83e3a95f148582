"""The check of a job's files: one checker at a time, and no file stops the service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import (
    Conflict,
)
from scheduler.domain.job import JobStatus
from scheduler.store.checks import MAX_CHECKS, Checks
from scheduler.store.files import Files
from scheduler.store.job_record import JobError
from scheduler.store.outbox import OutboxKind
from tests.integration.store_kit import create_job

if TYPE_CHECKING:
    from tests.integration.job_store.conftest import World


async def test_only_one_of_two_checkers_gets_the_job(world: World) -> None:
    job = await create_job(world.db, world.tenant)

    taken = await asyncio.gather(*(Checks(world.db).begin(job.id) for _ in range(4)))

    assert sum(check is not None for check in taken) == 1


async def test_a_passed_check_queues_the_job_and_hints(world: World) -> None:
    job = await world.queued()

    assert job.status is JobStatus.QUEUED
    assert OutboxKind.JOB_HINT in await world.sent_kinds(job.id)


async def test_a_failed_check_says_what_is_wrong(world: World) -> None:
    job = await create_job(world.db, world.tenant)
    check = await Checks(world.db).begin(job.id)

    error = JobError(code="invalid_training_file", message="line 3: no", param="training_file")
    assert await Checks(world.db).fail(check, error)

    failed = await world.jobs.get(job.id)
    assert (failed.status, failed.error) == (JobStatus.FAILED, error)
    assert failed.finished_at is not None


async def test_a_check_of_a_cancelled_job_changes_nothing(world: World) -> None:
    job = await create_job(world.db, world.tenant)
    check = await Checks(world.db).begin(job.id)
    await world.jobs.cancel(job.id)

    assert not await Checks(world.db).renew(check)
    assert not await Checks(world.db).succeed(check, train_key="t", valid_key=None, message="")
    assert not await Checks(world.db).fail(check, JobError(code="c", message="m"))

    assert await world.status(job.id) is JobStatus.CANCELLED


async def test_a_checker_that_lost_its_lease_changes_nothing(world: World) -> None:
    job = await create_job(world.db, world.tenant)
    zombie = await Checks(world.db).begin(job.id)
    await world.expire_lease(job.id)
    current = await Checks(world.db).begin(job.id)

    assert not await Checks(world.db).fail(zombie, JobError(code="c", message="m"))

    assert await Checks(world.db).succeed(current, train_key="t", valid_key=None, message="")


async def test_files_that_kill_their_checkers_fail_the_job(world: World) -> None:
    job = await create_job(world.db, world.tenant)
    for _ in range(MAX_CHECKS):
        assert await Checks(world.db).begin(job.id)
        await world.expire_lease(job.id)

    assert await Checks(world.db).begin(job.id) is None

    failed = await world.jobs.get(job.id)
    assert failed.error is not None
    assert failed.error.code == "check_crashed"


async def test_an_abandoned_check_is_free_and_hinted_at_once(world: World) -> None:
    job = await create_job(world.db, world.tenant)
    for _ in range(MAX_CHECKS + 2):
        check = await Checks(world.db).begin(job.id)
        assert check is not None
        await Checks(world.db).abandon(check)

    assert (await world.sent_kinds(job.id)).count(OutboxKind.VALIDATE_JOB) == MAX_CHECKS + 3


async def test_a_file_stays_while_it_is_checked(world: World) -> None:
    job = await create_job(world.db, world.tenant)
    files = Files(world.db).for_tenant(world.tenant.id)

    with pytest.raises(Conflict):
        await files.delete(job.training_file)

    await world.jobs.cancel(job.id)
    await files.delete(job.training_file)
