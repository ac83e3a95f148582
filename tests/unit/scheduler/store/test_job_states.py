"""Any history of wishes, workers, crashes and zombies keeps to the state machine."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select, update

from scheduler.domain.errors import InvalidTransition, LostLease, ModelNotFound
from scheduler.domain.job import JobStatus, is_final
from scheduler.store.adapters import Adapters
from scheduler.store.checks import Checks
from scheduler.store.database import Database
from scheduler.store.jobs import Jobs
from scheduler.store.leases import MAX_CRASHES, Leases
from scheduler.store.tables import jobs as jobs_table
from scheduler.store.tenants import Tenants
from tests.integration.store_kit import commit, create_job, progress

if TYPE_CHECKING:
    from collections.abc import Coroutine

S = JobStatus
# Ends of a job are drawn rarely, or else no history would get far.
RARELY = st.integers(0, 5).map(lambda number: number == 5)


class JobHistory(RuleBasedStateMachine):
    """One job, its model in plain Python, and the real stores on a real database."""

    migrated: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tandem-"))
        shutil.copy(self.migrated, self.folder / "t.db")
        self.runner = asyncio.Runner()
        self.status = S.VALIDATING_FILES
        self.epoch = 0
        self.cancel = self.pause = False
        self.crashes = 0
        self.steps: list[int] = []
        self.versions = 0

    def run(self, action: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(action)

    @initialize(checked=st.integers(0, 3).map(bool))
    def create(self, checked: bool) -> None:
        async def make() -> None:
            self.db = Database(f"sqlite+aiosqlite:///{self.folder}/t.db")
            tenant = await Tenants(self.db).create("acme")
            self.job = await create_job(self.db, tenant)
            self.jobs = Jobs(self.db).for_tenant(tenant.id)
            self.adapters = Adapters(self.db).for_tenant(tenant.id)
            self.leases = Leases(self.db)

        self.run(make())
        if checked:
            self.pass_the_check()

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.run(self.db.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    # ---- the task and the workers ----------------------------------------------------------

    @precondition(lambda self: self.status is S.VALIDATING_FILES)
    @rule()
    def check_files(self) -> None:
        self.pass_the_check()

    def pass_the_check(self) -> None:
        async def check() -> bool:
            checks = Checks(self.db)
            taken = await checks.begin(self.job.id)
            assert taken is not None
            return await checks.succeed(taken, train_key="t", valid_key=None, message="ok")

        assert self.run(check())
        self.epoch += 1
        self.status = S.QUEUED

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def claim(self, worker: str) -> None:
        leased = self.run(self.leases.claim(self.job.id, worker))
        if self.status is not S.QUEUED:
            assert leased is None
            return
        assert leased is not None
        assert leased.epoch == self.epoch + 1
        assert leased.next_version == self.versions + 1
        newest = leased.checkpoint.step if leased.checkpoint else None
        assert newest == max(self.steps, default=None)
        self.epoch, self.status = leased.epoch, S.RUNNING

    @rule()
    def renew(self) -> None:
        if self.status is S.RUNNING:
            wanted = self.run(self.leases.renew(self.job.id, self.epoch))
            assert (wanted.cancel, wanted.pause) == (self.cancel, self.pause)
        else:
            self.refuse(self.leases.renew(self.job.id, self.epoch))

    @rule(step=st.integers(1, 20))
    def report(self, step: int) -> None:
        action = self.leases.record_progress(progress(self.job.id, self.epoch, step))
        self.run(action) if self.status is S.RUNNING else self.refuse(action)

    @rule(ahead=st.integers(0, 2))
    def commit_checkpoint(self, ahead: int) -> None:
        newest = max(self.steps, default=0)
        step = max(newest + ahead, 1)
        action = self.leases.commit_checkpoint(self.job.id, self.epoch, commit(step))
        if self.status is not S.RUNNING:
            self.refuse(action)
            return
        ref = self.run(action)
        self.versions += 1
        assert ref.version == self.versions
        if step > newest:
            self.crashes = 0
        self.steps = sorted({*self.steps, step})

    @rule(now=RARELY)
    def finish(self, now: bool) -> None:
        if self.status is S.RUNNING and not now:
            return
        step = max(self.steps, default=0) + 1
        action = self.leases.finish(self.job.id, self.epoch, commit(step))
        if self.status is S.RUNNING:
            self.run(action)
            self.versions += 1
            self.steps.append(step)
            self.status = S.SUCCEEDED
        else:
            self.refuse(action)

    @rule(now=RARELY)
    def fail(self, now: bool) -> None:
        if self.status is S.RUNNING and not now:
            return
        action = self.leases.fail(self.job.id, self.epoch, "nan", "The loss is not finite.")
        if self.status is S.RUNNING:
            self.run(action)
            self.status = S.FAILED
        else:
            self.refuse(action)

    @precondition(lambda self: self.status is S.RUNNING)
    @rule(how=st.sampled_from(["release", "crash", "expire", "confirm_pause"]))
    def stop_running(self, how: str) -> None:
        if how == "expire":
            self.run(self.expire())
            assert self.run(self.leases.reap()) == [self.job.id]
        elif how == "confirm_pause":
            self.run(self.leases.confirm_pause(self.job.id, self.epoch))
        else:
            crashed = how == "crash"
            self.run(self.leases.release(self.job.id, self.epoch, crashed=crashed))
        self.crashes += how in ("crash", "expire")
        if self.cancel:
            self.status = S.CANCELLED
        elif self.crashes >= MAX_CRASHES:
            self.status = S.FAILED
        else:
            self.status = S.PAUSED if self.pause else S.QUEUED
        self.pause = False

    @precondition(lambda self: self.status is S.RUNNING and self.cancel)
    @rule()
    def confirm_cancel(self) -> None:
        self.run(self.leases.confirm_cancel(self.job.id, self.epoch))
        self.status = S.CANCELLED

    @precondition(lambda self: self.epoch > 1)
    @rule(age=st.integers(1, 3))
    def let_a_zombie_try(self, age: int) -> None:
        epoch = self.epoch - age
        self.refuse(self.leases.renew(self.job.id, epoch))
        self.refuse(self.leases.record_progress(progress(self.job.id, epoch, 1)))
        self.refuse(self.leases.commit_checkpoint(self.job.id, epoch, commit(99)))
        self.refuse(self.leases.finish(self.job.id, epoch, commit(99)))
        self.refuse(self.leases.release(self.job.id, epoch, crashed=True))

    # ---- the tenant ------------------------------------------------------------------------

    @rule(now=RARELY)
    def ask_to_cancel(self, now: bool) -> None:
        if not is_final(self.status) and not now:
            return
        if is_final(self.status):
            with pytest.raises(InvalidTransition):
                self.run(self.jobs.cancel(self.job.id))
        elif self.status is S.RUNNING:
            self.run(self.jobs.cancel(self.job.id))
            self.cancel = True
        else:
            self.run(self.jobs.cancel(self.job.id))
            self.status = S.CANCELLED

    @rule()
    def ask_to_pause(self) -> None:
        if self.status is S.RUNNING and not self.cancel:
            self.run(self.jobs.pause(self.job.id))
            self.pause = True
        elif self.status is S.QUEUED:
            self.run(self.jobs.pause(self.job.id))
            self.status = S.PAUSED
        else:
            with pytest.raises(InvalidTransition):
                self.run(self.jobs.pause(self.job.id))

    @rule()
    def ask_to_resume(self) -> None:
        if self.status is S.RUNNING and self.pause:
            self.run(self.jobs.resume(self.job.id))
            self.pause = False
        elif self.status is S.PAUSED:
            self.run(self.jobs.resume(self.job.id))
            self.status = S.QUEUED
        else:
            with pytest.raises(InvalidTransition):
                self.run(self.jobs.resume(self.job.id))

    # ---- what always holds -----------------------------------------------------------------

    @invariant()
    def the_stores_agree_with_the_model(self) -> None:
        if not hasattr(self, "db"):
            return
        job = self.run(self.jobs.get(self.job.id))
        assert job.status is self.status
        assert (job.finished_at is not None) == is_final(self.status)
        assert (job.error is not None) == (self.status is S.FAILED)
        page = self.run(self.jobs.checkpoints(self.job.id, limit=100))
        assert sorted(checkpoint.step for checkpoint in page) == self.steps
        assert self.run(self.leases.reap()) == []

    @invariant()
    def the_lease_is_held_exactly_while_it_runs(self) -> None:
        if not hasattr(self, "db"):
            return

        async def lease() -> Any:
            async with self.db.read() as conn:
                return (await conn.execute(select(jobs_table))).one()

        row = self.run(lease())
        assert row.epoch == self.epoch
        running = self.status is S.RUNNING
        assert (row.lease_owner is not None, row.lease_until is not None) == (running, running)

    @invariant()
    def the_plain_name_answers_exactly_after_success(self) -> None:
        if not hasattr(self, "db"):
            return
        resolve = self.adapters.resolve(self.job.model_name)
        if self.status is S.SUCCEEDED:
            assert self.run(resolve).ref.version == self.versions
        else:
            with pytest.raises(ModelNotFound):
                self.run(resolve)

    def refuse(self, action: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises(LostLease):
            self.run(action)

    async def expire(self) -> None:
        async with self.db.begin() as conn:
            await conn.execute(update(jobs_table).values(lease_until=1.0))


def test_every_history_keeps_to_the_state_machine(migrated_file: Path) -> None:
    JobHistory.migrated = migrated_file

    run_state_machine_as_test(
        JobHistory,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            phases=[
                Phase.generate
            ],  # a history of 25 steps reads well without minutes of shrinking
            suppress_health_check=list(HealthCheck),
        ),
    )
