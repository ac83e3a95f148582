from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from scheduler.domain.job import FinetuneSpec, JobStatus
from scheduler.store.checks import Checks
from scheduler.store.jobs import Job, JobDraft, Jobs
from scheduler.store.leases import Leases
from scheduler.store.outbox import Outbox, OutboxKind
from scheduler.tasks import validate_job as module
from scheduler.tasks.clean_job import clean_job
from scheduler.tasks.validate_job import validate_job
from scheduler.text import dataset
from tests.integration.store_kit import chat_rows, upload

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.tenant import Tenant
    from scheduler.tasks.context import TaskContext
    from scheduler.tasks.encode import EncodedSummary


async def create(
    context: TaskContext, tenant: Tenant, train: bytes, valid: bytes | None = None, model: str = "m"
) -> Job:
    training_file = await upload(context.db, tenant, context.objects, train)
    validation_file = None
    if valid is not None:
        validation_file = await upload(context.db, tenant, context.objects, valid)
    draft = JobDraft(
        spec=FinetuneSpec(base_model=model),
        training_file=training_file,
        validation_file=validation_file,
    )
    return await Jobs(context.db).for_tenant(tenant.id).create(draft)


async def reload(context: TaskContext, tenant: Tenant, job: Job) -> Job:
    return await Jobs(context.db).for_tenant(tenant.id).get(job.id)


async def test_good_files_become_data_sets_and_a_queued_job(
    context: TaskContext, tenant: Tenant, tmp_path: Path
) -> None:
    job = await create(context, tenant, chat_rows(12), chat_rows(3))

    await validate_job(job.id, context)

    assert (await reload(context, tenant, job)).status is JobStatus.QUEUED
    leased = await Leases(context.db).claim(job.id, "w")
    assert leased is not None
    for key, count in ((leased.train_key, 12), (leased.valid_key, 3)):
        await context.objects.get_file(key, tmp_path / "set.bin")
        assert dataset.read(tmp_path / "set.bin").num_examples == count
    events = await Jobs(context.db).for_tenant(tenant.id).events_since(job.id)
    assert "12 training examples" in events[1].message


@pytest.mark.parametrize(
    ("train", "valid", "param", "words"),
    [
        (chat_rows(1) + b"{oops\n" + chat_rows(1), None, "training_file", "line 2"),
        (b"", None, "training_file", "at least one"),
        (b"\xff\xfe\n", None, "training_file", "line 1"),
        (chat_rows(2), b'{"prompt": 1}\n', "validation_file", "line 1"),
        (b'{"prompt": "%s", "completion": "y"}\n' % (b"x" * 300), None, "training_file", "context"),
    ],
)
async def test_bad_files_fail_the_job_with_the_reason(
    context: TaskContext, tenant: Tenant, train: bytes, valid: bytes | None, param: str, words: str
) -> None:
    job = await create(context, tenant, train, valid)

    await validate_job(job.id, context)

    failed = await reload(context, tenant, job)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == (f"invalid_{param}", param)
    assert words in failed.error.message


async def test_a_model_that_is_gone_fails_the_job(context: TaskContext, tenant: Tenant) -> None:
    job = await create(context, tenant, chat_rows(1), model="gone")

    await validate_job(job.id, context)

    failed = await reload(context, tenant, job)
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == ("model_not_found", "model")


async def test_a_repeated_hint_changes_nothing(context: TaskContext, tenant: Tenant) -> None:
    job = await create(context, tenant, chat_rows(2))
    await asyncio.gather(*(validate_job(job.id, context) for _ in range(3)))
    before = await reload(context, tenant, job)

    await validate_job(job.id, context)
    await validate_job("ftjob-unknown", context)

    assert await reload(context, tenant, job) == before
    events = await Jobs(context.db).for_tenant(tenant.id).events_since(job.id)
    assert len(events) == 2


async def test_a_cancelled_job_stays_cancelled(context: TaskContext, tenant: Tenant) -> None:
    job = await create(context, tenant, chat_rows(2))

    async def cancel_meanwhile(*given: Any) -> EncodedSummary:
        await Jobs(context.db).for_tenant(tenant.id).cancel(job.id)
        return await context.encode(*given)

    await validate_job(job.id, replace(context, encode=cancel_meanwhile))

    assert (await reload(context, tenant, job)).status is JobStatus.CANCELLED


async def test_a_stopped_process_hands_its_check_back(context: TaskContext, tenant: Tenant) -> None:
    job = await create(context, tenant, chat_rows(2))
    outbox = Outbox(context.db)
    await outbox.mark_sent(await outbox.unsent())
    started = asyncio.Event()

    async def endless(*_given: Any) -> EncodedSummary:
        started.set()
        await asyncio.sleep(3600)
        raise AssertionError

    checking = asyncio.create_task(validate_job(job.id, replace(context, encode=endless)))
    await started.wait()
    checking.cancel()
    await asyncio.gather(checking, return_exceptions=True)

    (row,) = await outbox.unsent()
    assert (row.kind, row.job_id) == (OutboxKind.VALIDATE_JOB, job.id)
    await validate_job(job.id, context)
    assert (await reload(context, tenant, job)).status is JobStatus.QUEUED


async def test_a_long_check_keeps_its_lease(
    context: TaskContext, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_LEASE_S", 0.15)
    job = await create(context, tenant, chat_rows(2))
    renewals = []
    renew = Checks.renew

    async def counting(self: Checks, check: object) -> bool:
        renewals.append(check)
        return await renew(self, check)

    monkeypatch.setattr(Checks, "renew", counting)

    async def slow(*given: Any) -> EncodedSummary:
        await asyncio.sleep(0.5)
        return await context.encode(*given)

    await validate_job(job.id, replace(context, encode=slow))

    assert len(renewals) >= 2
    assert (await reload(context, tenant, job)).status is JobStatus.QUEUED


async def test_cleaning_leaves_only_the_adapters(context: TaskContext) -> None:
    kept = ("adapters/a/1/model", "datasets/ftjob-10/train.bin", "checkpoints/ftjob-10/x")
    gone = ("datasets/ftjob-1/train.bin", "checkpoints/ftjob-1/1/step-5/manifest.json")
    for key in kept + gone:
        await context.objects.put_bytes(key, b"x")

    await clean_job("ftjob-1", context)
    await clean_job("ftjob-1", context)

    assert [await context.objects.exists(key) for key in kept + gone] == [True] * 3 + [False] * 2
