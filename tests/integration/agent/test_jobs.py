"""Jobs that an agent claims, trains, reports and gives back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.domain.job import JobStatus
from scheduler.domain.message_codec import encode
from scheduler.domain.messages import JobHint
from scheduler.store.adapters import Adapters
from scheduler.store.board import Board
from scheduler.store.leases import Leases
from tests.integration.agent.conftest import until

if TYPE_CHECKING:
    from tests.integration.agent.conftest import Stage


async def test_a_job_is_trained_and_its_adapter_answers_at_once(stage: Stage) -> None:
    job = await stage.queued_job(steps=3)

    async with stage.agent():
        job = await stage.until(job, JobStatus.SUCCEEDED)
        adapter = await Adapters(stage.database).for_tenant(stage.tenant_id).resolve(job.model_name)
        await stage.submit("r1", 1, adapter=adapter.ref)
        (frame,) = await stage.frames(1)

    assert job.trained_tokens == 30
    assert frame.error is None
    assert frame.token_ids == (1, 3)
    assert stage.notes("start") == [f"start {job.id} epoch 2 encoded examples"]


async def test_a_job_goes_to_the_worker_with_more_slack_and_to_the_other_for_want_of_it(
    stage: Stage,
) -> None:
    slow = {"claim_every_s": 0.5}  # the busy worker leaves a job to others for 0.8 s
    async with stage.agent(**slow):
        held = [await stage.queued_job(steps=2, hold_at=2) for _ in range(3)]
        for job in held:
            await stage.until(job, JobStatus.RUNNING)  # there is nobody else
        async with stage.agent(worker_id="w2", **slow):
            await until(lambda: _num_workers(stage, 2))
            job = await stage.queued_job(steps=2, hold_at=2)
            for worker in await stage.channel.workers():
                await stage.channel.append(worker.inbox, encode(JobHint(job_id=job.id)))
            await stage.until(job, JobStatus.RUNNING)
            owners = {one.job_id: one.lease.owner for one in await Board(stage.database).running()}

    assert owners == {one.id: "w1" for one in held} | {job.id: "w2"}


async def _num_workers(stage: Stage, count: int) -> bool:
    return len(await stage.channel.workers()) == count


async def test_every_step_is_an_event_and_every_checkpoint_is_listed(stage: Stage) -> None:
    job = await stage.queued_job(steps=3)

    async with stage.agent():
        await stage.until(job, JobStatus.SUCCEEDED)

    events = (await stage.jobs.events(job.id, after=None, limit=50)).items
    checkpoints = (await stage.jobs.checkpoints(job.id, after=None, limit=50)).items
    assert [event.data["step"] for event in events if event.data] == [3, 2, 1]
    assert [checkpoint.step for checkpoint in checkpoints] == [3, 2, 1]


async def test_only_the_newest_training_states_are_kept(stage: Stage) -> None:
    job = await stage.queued_job(steps=6, hold_at=6)

    async with stage.agent():
        await until(lambda: _exists(stage, f"checkpoints/{job.id}/2/step-5/manifest.json"))
        await until(lambda: _gone(stage, f"checkpoints/{job.id}/2/step-3"))
        assert await stage.objects.exists(f"checkpoints/{job.id}/2/step-4/manifest.json")
        await stage.jobs.cancel(job.id)
        await stage.until(job, JobStatus.CANCELLED)


async def _exists(stage: Stage, key: str) -> bool:
    return await stage.objects.exists(key)


async def _gone(stage: Stage, key: str) -> bool:
    return not await stage.objects.exists(key)


async def test_a_failed_job_says_why(stage: Stage) -> None:
    job = await stage.queued_job(steps=3, fail_at=2)

    async with stage.agent():
        job = await stage.until(job, JobStatus.FAILED)

    assert job.error is not None
    assert (job.error.code, job.error.message) == ("not_finite", "Loss is NaN.")


async def test_a_hint_cancels_a_running_job_without_waiting_for_the_next_renewal(
    stage: Stage,
) -> None:
    stage.settings = stage.settings.model_copy(update={"renew_every_s": 3600.0, "lease_s": 7200.0})
    job = await stage.queued_job(steps=3, hold_at=2)

    async with stage.agent():
        await until(lambda: _exists(stage, f"checkpoints/{job.id}/2/step-1/manifest.json"))
        await stage.jobs.cancel(job.id)
        worker = await stage.worker()
        await stage.channel.append(worker.inbox, encode(JobHint(job_id=job.id)))

        await stage.until(job, JobStatus.CANCELLED)


async def test_a_paused_job_goes_on_from_its_checkpoint(stage: Stage) -> None:
    job = await stage.queued_job(steps=3, hold_at=2)

    async with stage.agent():
        await until(lambda: _exists(stage, f"checkpoints/{job.id}/2/step-1/manifest.json"))
        await stage.jobs.pause(job.id)
        await stage.until(job, JobStatus.PAUSED)
        await stage.jobs.resume(job.id)
        await until(lambda: stage.has_noted(f"start {job.id} epoch 3"))
        await stage.jobs.cancel(job.id)
        await stage.until(job, JobStatus.CANCELLED)

    messages = [event.message for event in (await stage.jobs.events(job.id)).items]
    assert "Training resumes at step 1." in messages


async def test_a_drained_worker_gives_its_jobs_back_with_a_checkpoint(stage: Stage) -> None:
    job = await stage.queued_job(steps=3, hold_at=2)

    async with stage.agent():
        await until(lambda: _exists(stage, f"checkpoints/{job.id}/2/step-1/manifest.json"))

    assert (await stage.jobs.get(job.id)).status is JobStatus.QUEUED
    leased = await Leases(stage.database).claim(job.id, "another")
    assert leased is not None
    assert leased.checkpoint is not None
    assert leased.checkpoint.step == 1


async def test_a_job_that_kills_the_engine_again_and_again_fails(stage: Stage) -> None:
    stage.settings = stage.settings.model_copy(update={"max_engine_deaths": 9})
    job = await stage.queued_job(steps=3, die_at=2)

    async with stage.agent():
        job = await stage.until(job, JobStatus.FAILED)

    assert job.error is not None
    assert job.error.code == "worker_crashed"


async def test_a_job_without_its_data_set_fails_after_a_few_tries(stage: Stage) -> None:
    job = await stage.queued_job(steps=3)
    await stage.objects.delete(f"datasets/{job.id}")

    async with stage.agent():
        job = await stage.until(job, JobStatus.FAILED)

    assert stage.notes("start") == []


async def test_a_job_that_was_taken_away_is_stopped_in_the_engine(stage: Stage) -> None:
    job = await stage.queued_job(steps=3, hold_at=2)
    leases = Leases(stage.database)

    async with stage.agent():
        await until(lambda: _exists(stage, f"checkpoints/{job.id}/2/step-1/manifest.json"))
        await leases.release(job.id, epoch=2)  # as the reaper does, had the worker been silent
        await until(lambda: stage.has_noted(f"start {job.id} epoch 3"))  # claimed anew, fenced
        await stage.jobs.cancel(job.id)
        await stage.until(job, JobStatus.CANCELLED)
