"""`python -m scheduler`, alone and with a real Celery worker and a real Redis, as processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.job import FinetuneSpec, JobStatus
from scheduler.domain.message_codec import decode
from scheduler.domain.messages import TO_WORKER, JobHint, WorkerCapabilities, WorkerInfo
from scheduler.settings import SchedulerSettings
from scheduler.store.channel import START
from scheduler.store.channels import connect_channel
from scheduler.store.database import Database, migrate
from scheduler.store.jobs import Job, JobDraft, Jobs
from scheduler.store.objects import ObjectStore
from scheduler.store.outbox import Outbox
from scheduler.store.tenants import Tenants
from tests.integration.store_kit import chat_rows, make_model_dir, redis_server, upload
from tests.servers.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scheduler.domain.tenant import Tenant

PATIENCE_S = 40.0  # process starts on a busy machine


@dataclass
class Service:
    """The stores behind the processes, and the environment that tells them."""

    db: Database
    objects: ObjectStore
    tenant: Tenant
    environment: dict[str, str]

    async def submit(self, content: bytes) -> Job:
        training_file = await upload(self.db, self.tenant, self.objects, content)
        draft = JobDraft(spec=FinetuneSpec(base_model="m"), training_file=training_file)
        return await Jobs(self.db).for_tenant(self.tenant.id).create(draft)

    async def until(self, job: Job, *statuses: JobStatus) -> Job:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await Jobs(self.db).for_tenant(self.tenant.id).get(job.id)
                if found.status in statuses:
                    return found
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def process(self, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
        environment = {**os.environ, **self.environment}
        running = await asyncio.create_subprocess_exec(*command, env=environment)
        try:
            yield running
        finally:
            if running.returncode is None:
                running.terminate()
            async with asyncio.timeout(PATIENCE_S):
                await running.wait()


SCHEDULER = (sys.executable, "-m", "scheduler")
CELERY = (
    sys.executable, "-m", "celery", "-A", "scheduler.celery_app", "worker",
    "--concurrency", "1", "--without-gossip", "--without-mingle", "--loglevel", "warning",
)  # fmt: skip


@pytest.fixture
async def service(short_dir: Path) -> AsyncIterator[Service]:
    settings = SchedulerSettings(data_dir=short_dir)
    await migrate(settings.database_url)
    db = Database(settings.database_url)
    environment = {
        "TANDEM_DATA_DIR": str(short_dir),
        "TANDEM_BASE_MODELS": json.dumps([f"m={make_model_dir(short_dir / 'm')}"]),
        "TANDEM_RELAY_POLL_S": "0.1",
        "TANDEM_RESEND_AFTER_S": "2",
    }
    tenant = await Tenants(db).create("acme")
    yield Service(db, ObjectStore(settings.object_store_url), tenant, environment)
    await db.close()


def children_of(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listing.split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


class TestEmbedded:
    async def test_jobs_are_checked_and_the_process_ends_cleanly(self, service: Service) -> None:
        good = await service.submit(chat_rows(10))
        bad = await service.submit(b"{oops\n")

        async with service.process(*SCHEDULER) as process:
            await service.until(good, JobStatus.QUEUED)
            failed = await service.until(bad, JobStatus.FAILED)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await process.wait() == 0

        assert failed.error is not None
        assert "line 1" in failed.error.message

    async def test_it_carries_the_channel_and_hints_workers(self, service: Service) -> None:
        async with service.process(*SCHEDULER):
            channel = connect_channel(
                f"unix://{service.environment['TANDEM_DATA_DIR']}/channel.sock"
            )
            capabilities = WorkerCapabilities(
                base_models=(), peft_methods={}, optimizers={}, objectives={},
                max_rank=8, max_num_sequences=4,
            )  # fmt: skip
            worker = WorkerInfo(worker_id="w", boot_id="1", capabilities=capabilities)
            await channel.announce(worker, ttl_s=60)  # its patience covers the broker's start
            job = await service.submit(chat_rows(2))

            async with asyncio.timeout(PATIENCE_S):
                entries = []
                while not entries:
                    entries = await channel.read({worker.inbox: START}, block_ms=1000)

            assert decode(TO_WORKER, entries[0][2]) == JobHint(job_id=job.id)
            await channel.close()

    async def test_a_killed_process_leaves_no_children_and_a_new_one_goes_on(
        self, service: Service
    ) -> None:
        async with service.process(*SCHEDULER) as process:
            first = await service.submit(chat_rows(2))
            await service.until(first, JobStatus.QUEUED)
            children = children_of(process.pid)
            assert children
            process.kill()
            await process.wait()
        second = await service.submit(chat_rows(2))

        async with service.process(*SCHEDULER):
            await service.until(second, JobStatus.QUEUED)

        async with asyncio.timeout(10):
            while any(is_running(child) for child in children):
                await asyncio.sleep(0.05)


class TestCelery:
    async def test_a_celery_worker_checks_jobs(self, service: Service) -> None:
        async with self.cluster(service):
            good = await service.submit(chat_rows(10))
            bad = await service.submit(b'{"messages": []}\n')

            await service.until(good, JobStatus.QUEUED)
            failed = await service.until(bad, JobStatus.FAILED)

        assert failed.error is not None
        assert failed.error.code == "invalid_training_file"

    async def test_a_hint_that_redis_lost_is_sent_again(self, service: Service) -> None:
        folder = Path(service.environment["TANDEM_DATA_DIR"]) / "redis"
        folder.mkdir()
        port = free_port()
        self.use_redis(service, port)
        async with service.process(*SCHEDULER):
            async with redis_server(folder, port):
                job = await service.submit(chat_rows(2))
                await self.until_sent(service, job)
            # Redis is gone with the message; a new one starts empty, and only now a worker.
            async with redis_server(folder, port), service.process(*CELERY):
                await service.until(job, JobStatus.QUEUED)

    @asynccontextmanager
    async def cluster(self, service: Service) -> AsyncIterator[None]:
        folder = Path(service.environment["TANDEM_DATA_DIR"]) / "redis"
        folder.mkdir()
        port = free_port()
        self.use_redis(service, port)
        async with (
            redis_server(folder, port),
            service.process(*SCHEDULER),
            service.process(*CELERY),
        ):
            yield

    def use_redis(self, service: Service, port: int) -> None:
        service.environment["TANDEM_CELERY_BROKER_URL"] = f"redis://127.0.0.1:{port}/0"
        service.environment["TANDEM_CHANNEL_URL"] = f"redis://127.0.0.1:{port}/1"

    async def until_sent(self, service: Service, job: Job) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while any(row.job_id == job.id for row in await Outbox(service.db).unsent()):
                await asyncio.sleep(0.05)
