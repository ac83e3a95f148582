"""What jobs, leases and adapters promise, on every database."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text, update

from scheduler.domain.errors import (
    Conflict,
    IdempotencyMismatch,
    InvalidInput,
    InvalidTransition,
    LostLease,
    ModelNotFound,
    NotFound,
    QuotaExceeded,
)
from scheduler.domain.job import FinetuneSpec, JobStatus
from scheduler.store.adapters import Adapters
from scheduler.store.checks import MAX_CHECKS, Checks
from scheduler.store.database import Database, migrate
from scheduler.store.files import Files
from scheduler.store.idempotency import IdempotencyKey
from scheduler.store.job_record import JobError
from scheduler.store.jobs import Job, JobDraft, Jobs, TenantJobs
from scheduler.store.leases import MAX_CRASHES, CheckpointRef, LeasedJob, Leases, Wanted
from scheduler.store.outbox import Outbox, OutboxKind
from scheduler.store.tables import jobs as jobs_table
from scheduler.store.tables import metadata, metrics
from scheduler.store.tenants import Tenants
from tests.integration.store_kit import commit, create_job, progress, upload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from scheduler.domain.tenant import Tenant

POSTGRES_URL = "TEST_POSTGRES_URL"  # e.g. postgresql+psycopg://user@/db?host=/run/pg


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    sqlite = request.param == "sqlite"
    url = f"sqlite+aiosqlite:///{tmp_path}/t.db" if sqlite else os.environ[POSTGRES_URL]
    await asyncio.gather(migrate(url), migrate(url))
    database = Database(url)
    if not sqlite:
        names = ", ".join(metadata.tables)
        async with database.begin() as conn:
            await conn.execute(text(f"TRUNCATE {names}"))
    yield database
    await database.close()


@dataclass
class World:
    """Two tenants and everything that acts on their jobs."""

    db: Database
    tenant: Tenant
    rival: Tenant

    @property
    def jobs(self) -> TenantJobs:
        return Jobs(self.db).for_tenant(self.tenant.id)

    @property
    def leases(self) -> Leases:
        return Leases(self.db)

    async def queued(self, **spec: object) -> Job:
        job = await create_job(self.db, self.tenant, **spec)
        check = await Checks(self.db).begin(job.id)
        assert check is not None
        await Checks(self.db).succeed(check, train_key="t", valid_key=None, message="ok")
        return await self.jobs.get(job.id)

    async def running(self, lease_s: float = 30.0, **spec: object) -> LeasedJob:
        job = await self.queued(**spec)
        leased = await self.leases.claim(job.id, "w1", lease_s)
        assert leased is not None
        return leased

    async def status(self, job_id: str) -> JobStatus:
        return (await self.jobs.get(job_id)).status

    async def messages(self, job_id: str) -> list[str]:
        return [event.message for event in await self.jobs.events_since(job_id)]

    async def sent_kinds(self, job_id: str) -> list[OutboxKind]:
        return [row.kind for row in await Outbox(self.db).unsent() if row.job_id == job_id]

    async def expire_lease(self, job_id: str) -> None:
        async with self.db.begin() as conn:
            await conn.execute(
                update(jobs_table).where(jobs_table.c.id == job_id).values(lease_until=1.0)
            )


@pytest.fixture
async def world(db: Database) -> World:
    tenants = Tenants(db)
    return World(db, await tenants.create("acme"), await tenants.create("rival"))


class TestCreate:
    async def test_a_job_its_hint_and_its_first_event_are_made_together(self, world: World) -> None:
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

    async def test_a_foreign_or_missing_file_is_refused_and_nothing_is_left(
        self, world: World
    ) -> None:
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

    async def test_unfinished_jobs_are_limited_also_when_creates_race(self, world: World) -> None:
        draft = JobDraft(
            spec=FinetuneSpec(base_model="m"), training_file=await upload(world.db, world.tenant)
        )

        results = await asyncio.gather(
            *(world.jobs.create(draft, max_active=2) for _ in range(6)), return_exceptions=True
        )

        assert sum(isinstance(result, QuotaExceeded) for result in results) == 4
        assert await world.jobs.count_active() == 2

    async def test_racing_creates_with_one_key_make_one_job(self, world: World) -> None:
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

    async def test_jobs_are_listed_by_metadata_newest_first(self, world: World) -> None:
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

    async def test_another_tenant_sees_nothing_of_a_job(self, world: World) -> None:
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


class TestChecks:
    async def test_only_one_of_two_checkers_gets_the_job(self, world: World) -> None:
        job = await create_job(world.db, world.tenant)

        taken = await asyncio.gather(*(Checks(world.db).begin(job.id) for _ in range(4)))

        assert sum(check is not None for check in taken) == 1

    async def test_a_passed_check_queues_the_job_and_hints(self, world: World) -> None:
        job = await world.queued()

        assert job.status is JobStatus.QUEUED
        assert OutboxKind.JOB_HINT in await world.sent_kinds(job.id)

    async def test_a_failed_check_says_what_is_wrong(self, world: World) -> None:
        job = await create_job(world.db, world.tenant)
        check = await Checks(world.db).begin(job.id)

        error = JobError(code="invalid_training_file", message="line 3: no", param="training_file")
        assert await Checks(world.db).fail(check, error)

        failed = await world.jobs.get(job.id)
        assert (failed.status, failed.error) == (JobStatus.FAILED, error)
        assert failed.finished_at is not None

    async def test_a_check_of_a_cancelled_job_changes_nothing(self, world: World) -> None:
        job = await create_job(world.db, world.tenant)
        check = await Checks(world.db).begin(job.id)
        await world.jobs.cancel(job.id)

        assert not await Checks(world.db).renew(check)
        assert not await Checks(world.db).succeed(check, train_key="t", valid_key=None, message="")
        assert not await Checks(world.db).fail(check, JobError(code="c", message="m"))

        assert await world.status(job.id) is JobStatus.CANCELLED

    async def test_a_checker_that_lost_its_lease_changes_nothing(self, world: World) -> None:
        job = await create_job(world.db, world.tenant)
        zombie = await Checks(world.db).begin(job.id)
        await world.expire_lease(job.id)
        current = await Checks(world.db).begin(job.id)

        assert not await Checks(world.db).fail(zombie, JobError(code="c", message="m"))

        assert await Checks(world.db).succeed(current, train_key="t", valid_key=None, message="")

    async def test_files_that_kill_their_checkers_fail_the_job(self, world: World) -> None:
        job = await create_job(world.db, world.tenant)
        for _ in range(MAX_CHECKS):
            assert await Checks(world.db).begin(job.id)
            await world.expire_lease(job.id)

        assert await Checks(world.db).begin(job.id) is None

        failed = await world.jobs.get(job.id)
        assert failed.error is not None
        assert failed.error.code == "check_crashed"

    async def test_an_abandoned_check_is_free_and_hinted_at_once(self, world: World) -> None:
        job = await create_job(world.db, world.tenant)
        for _ in range(MAX_CHECKS + 2):
            check = await Checks(world.db).begin(job.id)
            assert check is not None
            await Checks(world.db).abandon(check)

        assert (await world.sent_kinds(job.id)).count(OutboxKind.VALIDATE_JOB) == MAX_CHECKS + 3

    async def test_a_file_stays_while_it_is_checked(self, world: World) -> None:
        job = await create_job(world.db, world.tenant)
        files = Files(world.db).for_tenant(world.tenant.id)

        with pytest.raises(Conflict):
            await files.delete(job.training_file)

        await world.jobs.cancel(job.id)
        await files.delete(job.training_file)


class TestClaim:
    async def test_of_racing_workers_one_gets_the_job(self, world: World) -> None:
        job = await world.queued()

        claims = await asyncio.gather(
            *(world.leases.claim(job.id, f"w{number}") for number in range(6))
        )

        (winner,) = [claim for claim in claims if claim is not None]
        assert winner.spec == job.spec
        assert (winner.train_key, winner.checkpoint, winner.next_version) == ("t", None, 1)
        assert await world.status(job.id) is JobStatus.RUNNING

    async def test_jobs_come_by_priority_then_age_and_only_for_known_models(
        self, world: World
    ) -> None:
        first = await world.queued()
        second = await world.queued()
        urgent = await world.queued(priority=5)
        await world.queued(base_model="other")
        await world.running()

        assert await world.leases.claimable({"m"}) == [urgent.id, first.id, second.id]
        assert await world.leases.claimable([]) == []

    @pytest.mark.parametrize("action", ["cancel", "pause"])
    async def test_an_unwanted_job_is_not_claimed(self, world: World, action: str) -> None:
        job = await world.queued()
        await getattr(world.jobs, action)(job.id)

        assert await world.leases.claimable({"m"}) == []
        assert await world.leases.claim(job.id, "w1") is None


class TestFencing:
    async def test_a_zombie_can_write_nothing(self, world: World) -> None:
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

    async def test_a_late_worker_keeps_its_job_while_nobody_took_it(self, world: World) -> None:
        leased = await world.running(lease_s=0.0)

        assert await world.leases.renew(leased.job_id, leased.epoch) == Wanted()

        assert await world.leases.reap() == []

    async def test_a_live_lease_is_not_reaped(self, world: World) -> None:
        leased = await world.running()

        assert await world.leases.reap() == []
        assert await world.status(leased.job_id) is JobStatus.RUNNING

    async def test_nothing_can_be_written_about_a_finished_job(self, world: World) -> None:
        leased = await world.running()
        await world.leases.finish(leased.job_id, leased.epoch, commit(5))

        with pytest.raises(LostLease):
            await world.leases.fail(leased.job_id, leased.epoch, "c", "m")
        with pytest.raises(LostLease):
            await world.leases.finish(leased.job_id, leased.epoch, commit(6))


class TestProgress:
    async def test_a_step_becomes_a_metrics_event(self, world: World) -> None:
        leased = await world.running()
        report = progress(leased.job_id, leased.epoch, 2, valid_loss=0.7)

        await world.leases.record_progress(report)

        event = (await world.jobs.events(leased.job_id)).items[0]
        assert event.type == "metrics"
        assert event.data == report.model_dump(
            exclude={"type", "job_id", "epoch"}, exclude_none=True
        )
        job = await world.jobs.get(leased.job_id)
        assert job.trained_tokens == 20
        assert 55 <= job.estimated_finish - event.created_at <= 65

    async def test_a_repeated_step_leaves_one_event(self, world: World) -> None:
        leased = await world.running()
        steps = [progress(leased.job_id, leased.epoch, step) for step in (1, 2, 3)]

        await world.leases.record_progress(*steps)
        await world.leases.record_progress(*steps[1:])

        events = await world.jobs.events_since(leased.job_id)
        assert [event.data["step"] for event in events if event.data] == [1, 2, 3]
        assert not [event for event in events if event.level == "warn"]

    @pytest.mark.parametrize(
        ("deterministic", "loss", "warns"),
        [(False, 0.505, False), (False, 0.6, True), (True, 0.5, False), (True, 0.5000001, True)],
    )
    async def test_a_repeated_step_with_another_loss_is_reported(
        self, world: World, deterministic: bool, loss: float, warns: bool
    ) -> None:
        leased = await world.running(deterministic=deterministic)
        await world.leases.record_progress(progress(leased.job_id, leased.epoch, 2, train_loss=0.5))

        await world.leases.record_progress(
            progress(leased.job_id, leased.epoch, 2, train_loss=loss)
        )

        events = await world.jobs.events_since(leased.job_id)
        assert any(event.level == "warn" for event in events) == warns
        async with world.db.read() as conn:
            assert await conn.scalar(select(metrics.c.num_mismatches)) == int(warns)

    async def test_a_validation_pass_after_its_step_is_an_event_of_its_own(
        self, world: World
    ) -> None:
        leased = await world.running()
        await world.leases.record_progress(progress(leased.job_id, leased.epoch, 2))

        await world.leases.record_progress(progress(leased.job_id, leased.epoch, 2, valid_loss=0.9))

        event = (await world.jobs.events(leased.job_id)).items[0]
        assert event.data["valid_loss"] == 0.9

    async def test_events_page_backwards_and_follow_forwards(self, world: World) -> None:
        leased = await world.running()
        steps = [progress(leased.job_id, leased.epoch, step) for step in range(1, 8)]
        await world.leases.record_progress(*steps)
        everything = await world.jobs.events_since(leased.job_id)

        page = await world.jobs.events(leased.job_id, limit=4)
        rest = await world.jobs.events(leased.job_id, after=page.items[-1].id, limit=100)

        assert page.has_more
        assert page.items + rest.items == everything[::-1]
        since = await world.jobs.events_since(leased.job_id, since=everything[3].id)
        assert since == everything[4:]
        with pytest.raises(InvalidInput):
            await world.jobs.events(leased.job_id, after="ft-event-none")

    async def test_reports_of_two_leases_in_one_call_are_a_mistake(self, world: World) -> None:
        leased = await world.running()

        with pytest.raises(ValueError, match="one lease"):
            await world.leases.record_progress(
                progress(leased.job_id, leased.epoch, 1), progress(leased.job_id, 99, 2)
            )


class TestWishes:
    async def test_cancelling_a_queued_job_is_done_at_once(self, world: World) -> None:
        job = await world.queued()

        cancelled = await world.jobs.cancel(job.id)

        assert cancelled.status is JobStatus.CANCELLED
        assert cancelled.finished_at is not None
        assert OutboxKind.CLEAN_JOB in await world.sent_kinds(job.id)
        with pytest.raises(InvalidTransition):
            await world.jobs.cancel(job.id)

    async def test_a_running_job_is_asked_and_its_worker_hinted(self, world: World) -> None:
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

    async def test_a_running_job_pauses_when_its_worker_confirms(self, world: World) -> None:
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

    async def test_a_pause_taken_back_in_time_leaves_the_job_queued(self, world: World) -> None:
        leased = await world.running()
        await world.jobs.pause(leased.job_id)
        await world.jobs.resume(leased.job_id)

        await world.leases.confirm_pause(leased.job_id, leased.epoch)

        assert await world.status(leased.job_id) is JobStatus.QUEUED

    async def test_a_paused_job_can_be_cancelled(self, world: World) -> None:
        job = await world.queued()
        await world.jobs.pause(job.id)

        assert (await world.jobs.cancel(job.id)).status is JobStatus.CANCELLED

    async def test_impossible_wishes_are_refused(self, world: World) -> None:
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


class TestCrashes:
    async def test_a_lost_worker_puts_its_job_back(self, world: World) -> None:
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

    async def test_three_crashes_without_a_checkpoint_fail_the_job(self, world: World) -> None:
        job = await world.queued()
        for _ in range(MAX_CRASHES):
            leased = await world.leases.claim(job.id, "w")
            assert leased is not None
            await world.leases.release(job.id, leased.epoch, crashed=True)

        failed = await world.jobs.get(job.id)
        assert failed.status is JobStatus.FAILED
        assert failed.error is not None
        assert failed.error.code == "worker_crashed"

    async def test_a_checkpoint_forgives_earlier_crashes(self, world: World) -> None:
        job = await world.queued()
        for step in range(1, 2 * MAX_CRASHES):
            leased = await world.leases.claim(job.id, "w")
            assert leased is not None
            await world.leases.commit_checkpoint(job.id, leased.epoch, commit(step))
            await world.leases.release(job.id, leased.epoch, crashed=True)

        assert await world.status(job.id) is JobStatus.QUEUED

    async def test_the_same_checkpoint_again_forgives_nothing(self, world: World) -> None:
        job = await world.queued()
        for _ in range(MAX_CRASHES + 1):
            leased = await world.leases.claim(job.id, "w")
            if leased is None:
                break
            await world.leases.commit_checkpoint(job.id, leased.epoch, commit(7))
            await world.leases.release(job.id, leased.epoch, crashed=True)

        assert await world.status(job.id) is JobStatus.FAILED

    async def test_draining_is_no_crash(self, world: World) -> None:
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
        self, world: World, wish: str, status: JobStatus
    ) -> None:
        leased = await world.running()
        await getattr(world.jobs, wish)(leased.job_id)
        await world.expire_lease(leased.job_id)

        await world.leases.reap()

        assert await world.status(leased.job_id) is status


class TestVersions:
    async def test_checkpoints_are_listed_newest_first_with_callable_names(
        self, world: World
    ) -> None:
        leased = await world.running()
        for step in (10, 20, 30):
            await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(step))

        page = await world.jobs.checkpoints(leased.job_id, limit=2)

        assert [checkpoint.step for checkpoint in page] == [30, 20]
        assert page.has_more
        names = Adapters(world.db).for_tenant(world.tenant.id)
        resolved = await names.resolve(page.items[1].model_name)
        assert (resolved.base_model, resolved.ref.version, resolved.ref.digest) == ("m", 2, "d20")

    async def test_pruning_keeps_the_newest_states_and_all_adapters(self, world: World) -> None:
        leased = await world.running()
        for step in (10, 20, 30, 40):
            await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(step))

        stale = await world.leases.prune_checkpoints(leased.job_id, leased.epoch, keep=2)

        assert stale == ["checkpoints/20", "checkpoints/10"]
        assert await world.leases.prune_checkpoints(leased.job_id, leased.epoch, keep=2) == []
        names = Adapters(world.db).for_tenant(world.tenant.id)
        assert (await names.resolve(f"{leased.model_name}:ckpt-step-10")).ref.version == 1

    async def test_the_plain_name_answers_only_after_success(self, world: World) -> None:
        leased = await world.running()
        names = Adapters(world.db).for_tenant(world.tenant.id)
        live = f"{leased.model_name}:live"
        with pytest.raises(ModelNotFound):
            await names.resolve(live)
        first = await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(10))
        assert (await names.resolve(live)).ref == first
        with pytest.raises(ModelNotFound):
            await names.resolve(leased.model_name)

        final = await world.leases.finish(leased.job_id, leased.epoch, commit(20, uri=None))

        assert final.version == 2
        assert (await names.resolve(leased.model_name)).ref == final
        assert (await names.resolve(live)).ref == final
        assert (await names.resolve(f"{leased.model_name}:ckpt-step-20")).ref == final
        job = await world.jobs.get(leased.job_id)
        assert job.fine_tuned_model == leased.model_name
        assert (job.status, job.trained_tokens) == (JobStatus.SUCCEEDED, 200)

    async def test_finishing_at_a_committed_step_publishes_the_newer_version(
        self, world: World
    ) -> None:
        leased = await world.running()
        await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(20))

        final = await world.leases.finish(
            leased.job_id, leased.epoch, commit(20, adapter_digest="better")
        )

        names = Adapters(world.db).for_tenant(world.tenant.id)
        assert (await names.resolve(f"{leased.model_name}:ckpt-step-20")).ref == final
        assert len(await world.jobs.checkpoints(leased.job_id)) == 1

    async def test_a_foreign_and_an_unknown_name_get_the_same_answer(self, world: World) -> None:
        leased = await world.running()
        await world.leases.finish(leased.job_id, leased.epoch, commit(5))
        stranger = Adapters(world.db).for_tenant(world.rival.id)

        for suffix in ("", ":live", ":ckpt-step-5"):
            with pytest.raises(ModelNotFound) as foreign:
                await stranger.resolve(leased.model_name + suffix)
            with pytest.raises(ModelNotFound) as unknown:
                await stranger.resolve("ft:none" + suffix)
            expected = unknown.value.message.replace("ft:none", leased.model_name)
            assert foreign.value.message == expected
        with pytest.raises(NotFound):
            await stranger.get(leased.adapter_id)
        with pytest.raises(NotFound):
            await stranger.delete(leased.adapter_id)
        assert len(await stranger.list()) == 0

    async def test_an_adapter_is_deleted_with_all_its_names(self, world: World) -> None:
        leased = await world.running()
        await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(5))
        names = Adapters(world.db).for_tenant(world.tenant.id)
        with pytest.raises(Conflict):
            await names.delete(leased.adapter_id)
        await world.leases.finish(leased.job_id, leased.epoch, commit(9))
        (adapter,) = await names.list()
        assert adapter == await names.get(leased.adapter_id)
        assert [version.step for version in adapter.versions] == [5, 9]

        await names.delete(leased.adapter_id)

        for name in ("", ":live", ":ckpt-step-5", ":ckpt-step-9"):
            with pytest.raises(ModelNotFound):
                await names.resolve(leased.model_name + name)
        with pytest.raises(NotFound):
            await names.delete(leased.adapter_id)
        assert len(await names.list()) == 0


class TestOutbox:
    async def test_rows_come_in_order_until_they_are_marked(self, world: World) -> None:
        first = await create_job(world.db, world.tenant)
        second = await create_job(world.db, world.tenant)
        outbox = Outbox(world.db)
        rows = await outbox.unsent()
        assert [row.job_id for row in rows] == [first.id, second.id]

        await outbox.mark_sent(rows[:1])

        assert await outbox.unsent() == rows[1:]

    async def test_a_waiting_job_is_hinted_again_but_not_a_held_one(self, world: World) -> None:
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
