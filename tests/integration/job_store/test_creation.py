"""Creating a job: whole or not at all, within quota, once per key, and nobody else's business."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import (
    IdempotencyMismatch,
    InvalidInput,
    NotFound,
    QuotaExceeded,
)
from scheduler.domain.job import FinetuneSpec, JobStatus
from scheduler.store.idempotency import IdempotencyKey
from scheduler.store.jobs import JobDraft, Jobs
from scheduler.store.outbox import OutboxKind
from tests.integration.store_kit import create_job, upload

if TYPE_CHECKING:
    from tests.integration.job_store.conftest import World


async def test_a_job_its_hint_and_its_first_event_are_made_together(world: World) -> None:
    job = await create_job(world.db, world.tenant, seed=7)

    assert job.status is JobStatus.VALIDATING_FILES
    assert job.id.startswith("ftjob-")
    assert job.model_name == f"ft:m:acme:s:{job.adapter_id}"
    assert len(job.adapter_id) == 8
    assert job.fine_tuned_model is None
    assert (job.model, job.seed, job.error) == ("m", 7, None)
    assert await world.sent_kinds(job.id) == [OutboxKind.VALIDATE_JOB]
    assert len(await world.messages(job.id)) == 1
    assert await world.jobs.get(job.id) == job


async def test_a_foreign_or_missing_file_is_refused_and_nothing_is_left(world: World) -> None:
    foreign = await upload(world.db, world.rival)
    mine = await upload(world.db, world.tenant)
    spec = FinetuneSpec(base_model="m")

    with pytest.raises(InvalidInput) as training:
        await world.jobs.create(JobDraft(spec=spec, training_file=foreign))
    with pytest.raises(InvalidInput) as validation:
        await world.jobs.create(
            JobDraft(spec=spec, training_file=mine, validation_file="file-none")
        )

    assert training.value.param == "training_file"
    assert validation.value.param == "validation_file"
    assert (await world.jobs.list()).items == ()


async def test_unfinished_jobs_are_limited_also_when_creates_race(world: World) -> None:
    draft = JobDraft(
        spec=FinetuneSpec(base_model="m"), training_file=await upload(world.db, world.tenant)
    )

    results = await asyncio.gather(
        *(world.jobs.create(draft, max_active=2) for _ in range(6)), return_exceptions=True
    )

    assert sum(isinstance(result, QuotaExceeded) for result in results) == 4
    assert await world.jobs.count_active() == 2


async def test_racing_creates_with_one_key_make_one_job(world: World) -> None:
    draft = JobDraft(
        spec=FinetuneSpec(base_model="m"), training_file=await upload(world.db, world.tenant)
    )
    key = IdempotencyKey(key="k", body_hash="h")

    made = await asyncio.gather(
        *(world.jobs.create(draft, idempotency=key, max_active=1) for _ in range(6))
    )

    assert len({job.id for job in made}) == 1
    assert len(await world.jobs.list()) == 1
    with pytest.raises(IdempotencyMismatch):
        await world.jobs.create(draft, idempotency=IdempotencyKey(key="k", body_hash="other"))


async def test_jobs_are_listed_by_metadata_newest_first(world: World) -> None:
    file_id = await upload(world.db, world.tenant)
    spec = FinetuneSpec(base_model="m")
    tricky = {"team": "a", 'quo"te$': "x"}
    made = [
        await world.jobs.create(JobDraft(spec=spec, training_file=file_id, metadata=tags))
        for tags in ({"team": "a"}, {"team": "b"}, tricky)
    ]

    async def found(wanted: dict[str, str]) -> list[str]:
        return [job.id for job in await world.jobs.list(metadata=wanted)]

    assert await found({}) == [made[2].id, made[1].id, made[0].id]
    assert await found({"team": "a"}) == [made[2].id, made[0].id]
    assert await found(tricky) == [made[2].id]
    assert await found({"team": "c"}) == []
    assert made[2].metadata == tricky


async def test_another_tenant_sees_nothing_of_a_job(world: World) -> None:
    leased = await world.running()
    stranger = Jobs(world.db).for_tenant(world.rival.id)

    for call in (
        stranger.get, stranger.cancel, stranger.pause, stranger.resume,
        stranger.events, stranger.events_since, stranger.checkpoints,
    ):  # fmt: skip
        with pytest.raises(NotFound):
            await call(leased.job_id)
    assert (await stranger.list()).items == ()
    assert await stranger.count_active() == 0
