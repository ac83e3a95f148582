from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from scheduler.domain.errors import InvalidInput
from scheduler.domain.job import JobStatus
from scheduler.domain.message_codec import decode
from scheduler.domain.messages import TO_WORKER, JobHint, WorkerCapabilities, WorkerInfo
from scheduler.settings import RelaySettings
from scheduler.store.channel import START
from scheduler.store.channels.local import LocalBroker, LocalChannel
from scheduler.store.jobs import Jobs
from scheduler.store.leases import Leases
from scheduler.store.outbox import Outbox
from scheduler.store.tables import jobs as jobs_table
from scheduler.tasks import registry
from scheduler.tasks.encode_pool import EncodePool
from scheduler.tasks.executor import Executor, LocalExecutor
from scheduler.tasks.registry import ADAPTER_ORDER, TaskQueue
from scheduler.tasks.relay import Relay
from tests.integration.store_kit import chat_rows, create_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scheduler.domain.tenant import Tenant
    from scheduler.tasks.context import TaskContext


class Recorder(Executor):
    """Writes down what it is asked, or is away."""

    def __init__(self) -> None:
        self.submitted: list[tuple[str, str]] = []
        self.away = False

    async def submit(self, task: str, job_id: str) -> None:
        if self.away:
            raise ConnectionError("away")
        self.submitted.append((task, job_id))

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
async def channel() -> AsyncIterator[LocalChannel]:
    folder = Path(tempfile.mkdtemp(prefix="tandem-"))
    async with LocalBroker(folder / "c.sock"):
        client = LocalChannel(folder / "c.sock")
        yield client
        await client.close()
    shutil.rmtree(folder)


@pytest.fixture
def executor() -> Recorder:
    return Recorder()


@pytest.fixture
def relay(context: TaskContext, executor: Recorder, channel: LocalChannel) -> Relay:
    return Relay(context.db, executor, channel, RelaySettings())


def worker(worker_id: str) -> WorkerInfo:
    capabilities = WorkerCapabilities(
        base_models=(), peft_methods={}, optimizers={}, objectives={},
        max_rank=8, max_num_sequences=4,
    )  # fmt: skip
    return WorkerInfo(worker_id=worker_id, boot_id="1", capabilities=capabilities)


class TestRelay:
    async def test_a_new_job_is_sent_to_the_executor_once(
        self, context: TaskContext, tenant: Tenant, relay: Relay, executor: Recorder
    ) -> None:
        job = await create_job(context.db, tenant)

        await relay.send_outbox()
        await relay.send_outbox()

        assert executor.submitted == [("validate_job", job.id)]

    async def test_what_could_not_be_sent_is_sent_later(
        self, context: TaskContext, tenant: Tenant, relay: Relay, executor: Recorder
    ) -> None:
        job = await create_job(context.db, tenant)
        executor.away = True
        with pytest.raises(ConnectionError):
            await relay.send_outbox()
        executor.away = False

        await relay.send_outbox()

        assert executor.submitted == [("validate_job", job.id)]

    async def test_hints_reach_every_worker_once_each(
        self, context: TaskContext, tenant: Tenant, relay: Relay, channel: LocalChannel
    ) -> None:
        job = await create_job(context.db, tenant)
        jobs = Jobs(context.db).for_tenant(tenant.id)
        async with context.db.begin() as conn:
            await conn.execute(update(jobs_table).values(status=JobStatus.QUEUED))
        await Leases(context.db).claim(job.id, "w1")
        await jobs.pause(job.id)
        await jobs.resume(job.id)
        for worker_id in ("w1", "w2"):
            await channel.announce(worker(worker_id), ttl_s=30)

        await relay.send_outbox()

        for worker_id in ("w1", "w2"):
            entries = await channel.read({worker(worker_id).inbox: START})
            assert [decode(TO_WORKER, data) for _, _, data in entries] == [JobHint(job_id=job.id)]

    async def test_its_loops_survive_a_failing_turn(
        self, context: TaskContext, tenant: Tenant, executor: Recorder, channel: LocalChannel
    ) -> None:
        executor.away = True
        settings = RelaySettings(relay_poll_s=0.01)
        job = await create_job(context.db, tenant)
        running = asyncio.create_task(Relay(context.db, executor, channel, settings).run())
        await asyncio.sleep(0.1)

        executor.away = False

        async with asyncio.timeout(5):
            while not executor.submitted:
                await asyncio.sleep(0.01)
        assert executor.submitted[0] == ("validate_job", job.id)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def test_it_reaps_expired_leases(
        self, context: TaskContext, tenant: Tenant, relay: Relay
    ) -> None:
        job = await create_job(context.db, tenant)
        async with context.db.begin() as conn:
            await conn.execute(
                update(jobs_table).values(status=JobStatus.RUNNING, epoch=1, lease_until=1.0)
            )

        await relay.reap()

        found = await Jobs(context.db).for_tenant(tenant.id).get(job.id)
        assert found.status is JobStatus.QUEUED

    async def test_it_hints_again_about_forgotten_jobs(
        self, context: TaskContext, tenant: Tenant, relay: Relay, executor: Recorder
    ) -> None:
        job = await create_job(context.db, tenant)
        await Outbox(context.db).mark_sent(await Outbox(context.db).unsent())
        async with context.db.begin() as conn:
            await conn.execute(update(jobs_table).values(hinted_at=1.0))

        await relay.resend_waiting()
        await relay.send_outbox()
        await relay.purge()

        assert executor.submitted == [("validate_job", job.id)]


class TestLocalExecutor:
    async def test_a_hint_about_a_running_task_is_dropped(
        self, context: TaskContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs: list[str] = []
        release = asyncio.Event()

        async def wait(job_id: str, _context: TaskContext) -> None:
            runs.append(job_id)
            await release.wait()

        monkeypatch.setitem(registry.TASKS, "validate_job", wait)
        executor = LocalExecutor(context, {TaskQueue.JOBS: 2})
        for job_id in ("a", "a", "b", "c"):
            await executor.submit("validate_job", job_id)
        await asyncio.sleep(0.02)

        assert runs == ["a", "b"]  # c waits for room
        release.set()
        await asyncio.sleep(0.02)
        assert runs == ["a", "b", "c"]
        await executor.submit("validate_job", "a")
        await executor.close()

    async def test_orders_hold_up_no_jobs(
        self, context: TaskContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs: list[str] = []
        release = asyncio.Event()

        async def check(job_id: str, _context: TaskContext) -> None:
            runs.append(job_id)

        async def make(order_id: str, context: TaskContext) -> None:
            await check(order_id, context)
            await release.wait()

        monkeypatch.setitem(registry.TASKS, "validate_job", check)
        monkeypatch.setitem(registry.TASKS, ADAPTER_ORDER, make)
        executor = LocalExecutor(context, dict.fromkeys(TaskQueue, 1))
        for order_id in ("order 1", "order 2"):
            await executor.submit(ADAPTER_ORDER, order_id)
        await executor.submit("validate_job", "job")
        await asyncio.sleep(0.02)

        assert runs == ["order 1", "job"]
        await executor.close()

    async def test_a_failing_task_is_logged_and_can_run_again(
        self, context: TaskContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs: list[str] = []

        async def fail(job_id: str, _context: TaskContext) -> None:
            runs.append(job_id)
            raise RuntimeError("disk on fire")

        monkeypatch.setitem(registry.TASKS, "clean_job", fail)
        executor = LocalExecutor(context, {TaskQueue.JOBS: 1})
        for _ in range(2):
            await executor.submit("clean_job", "a")
            await asyncio.sleep(0.02)

        assert runs == ["a", "a"]
        await executor.close()


class TestEncodePool:
    async def test_it_tokenises_in_another_process(self, model_dir: Path, tmp_path: Path) -> None:
        pool = EncodePool(1)
        (tmp_path / "rows").write_bytes(chat_rows(3))
        (tmp_path / "bad").write_bytes(b"{oops\n")

        summary = await pool.encode(model_dir, tmp_path / "rows", tmp_path / "set.bin")
        with pytest.raises(InvalidInput, match="line 1"):
            await pool.encode(model_dir, tmp_path / "bad", tmp_path / "set2.bin")

        assert summary.num_examples == 3
        assert os.getpid() not in pool._pool._processes
        pool.close()

    async def test_a_killed_child_is_replaced(self, model_dir: Path, tmp_path: Path) -> None:
        pool = EncodePool(1)
        (tmp_path / "rows").write_bytes(chat_rows(3))
        await pool.encode(model_dir, tmp_path / "rows", tmp_path / "set.bin")
        (pid,) = pool._pool._processes
        os.kill(pid, signal.SIGKILL)

        async def until_it_works() -> None:
            while True:
                try:
                    await pool.encode(model_dir, tmp_path / "rows", tmp_path / "set.bin")
                except BrokenProcessPool:
                    continue
                return

        async with asyncio.timeout(30):
            await until_it_works()
        assert pid not in pool._pool._processes
        pool.close()
