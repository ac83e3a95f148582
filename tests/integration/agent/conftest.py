"""An agent between a real channel, a real database, real files and a scripted engine child."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.job import FinetuneSpec, JobStatus
from scheduler.domain.message_codec import decode, encode
from scheduler.domain.messages import TO_GATEWAY, Submit, TokenFrame, WorkerInfo
from scheduler.domain.request import RequestBody, WeightedModel
from scheduler.store.channels.local import LocalBroker, LocalChannel
from scheduler.store.checks import Checks
from scheduler.store.database import Database, migrate
from scheduler.store.files import Files, new_file_id
from scheduler.store.jobs import Job, JobDraft, Jobs, TenantJobs
from scheduler.store.leases import Leases
from scheduler.store.objects import ObjectStore
from scheduler.store.tenants import Tenants
from workers.agent.adapter_cache import AdapterCache
from workers.agent.agent import Agent
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

ENGINE = Path(__file__).parents[1] / "scripted_engine.py"
REPO = Path(__file__).resolve().parents[3]
OUT = "out:gateway:1"
PATIENCE_S = 20.0


@dataclass
class Stage:
    """What an agent stands in, and the agent's own parts."""

    settings: WorkerSettings
    broker: LocalBroker
    channel: LocalChannel
    database: Database
    objects: ObjectStore
    jobs: TenantJobs
    tenant_id: str
    diary: Path

    @asynccontextmanager
    async def agent(self, **settings: object) -> AsyncIterator[asyncio.Task[None]]:
        """A running agent, with these settings changed; drained at the end."""
        changed = self.settings.model_copy(update=settings)
        cache = AdapterCache(
            self.objects, self.settings.adapter_cache_dir, self.settings.adapter_cache_bytes
        )
        agent = Agent(
            changed,
            self.channel,
            Leases(self.database),
            self.objects,
            cache,
            (sys.executable, str(ENGINE)),
        )
        running = asyncio.create_task(agent.run())
        try:
            yield running
        finally:
            agent.drain()
            if not running.done():
                await asyncio.wait_for(running, PATIENCE_S)

    async def worker(self) -> WorkerInfo:
        """The announced worker, once there is one."""
        async with asyncio.timeout(PATIENCE_S):
            while not (workers := await self.channel.workers()):
                await asyncio.sleep(0.02)
        return workers[0]

    async def submit(
        self,
        request_id: str,
        *prompt: int,
        adapter: AdapterRef | None = None,
        mixture: Sequence[WeightedModel] = (),
    ) -> WorkerInfo:
        """Send a request to the announced worker."""
        worker = await self.worker()
        request = RequestBody(
            request_id=request_id,
            tenant_id=self.tenant_id,
            base_model="tiny",
            adapter=adapter,
            mixture=tuple(mixture),
            prompt_token_ids=prompt,
        )
        await self.channel.append(worker.inbox, encode(Submit(request=request, reply_to=OUT)))
        return worker

    async def frames(self, count: int) -> list[TokenFrame]:
        """The first frames that came back."""
        found: list[TokenFrame] = []
        last_id = "0"
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < count:
                entries = await self.channel.read({OUT: last_id}, block_ms=100)
                for _, entry_id, body in entries:
                    last_id = entry_id
                    found += decode(TO_GATEWAY, body).frames
        return found

    async def queued_job(self, *, steps: int, **script: object) -> Job:
        """A job whose data set has been checked."""
        draft = JobDraft(
            spec=FinetuneSpec(base_model="tiny", n_epochs=steps, method_config=script),
            training_file=await _training_file(self.database, self.tenant_id),
        )
        job = await self.jobs.create(draft)
        checks = Checks(self.database)
        check = await checks.begin(job.id)
        assert check is not None
        key = f"datasets/{job.id}/train.bin"
        await self.objects.put_bytes(key, b"encoded examples")
        await checks.succeed(check, train_key=key, valid_key=None, message="Checked.")
        return job

    async def until(self, job: Job, status: JobStatus) -> Job:
        """The job, once it has reached a state."""
        await until(lambda: self._has(job, status))
        return await self.jobs.get(job.id)

    async def _has(self, job: Job, status: JobStatus) -> bool:
        return (await self.jobs.get(job.id)).status is status

    def notes(self, word: str) -> list[str]:
        """Lines that the scripted engine left."""
        return [line for line in self.diary.read_text().splitlines() if line.startswith(word)]

    async def has_noted(self, line: str) -> bool:
        """Whether it left this, or a line that begins so."""
        return line in self.diary.read_text()


async def _training_file(database: Database, tenant_id: str) -> str:
    file_id = new_file_id()
    await (
        Files(database)
        .for_tenant(tenant_id)
        .create(
            file_id=file_id,
            filename="train.jsonl",
            purpose="fine-tune",
            num_bytes=1,
            object_key=f"files/{file_id}",
        )
    )
    return file_id


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that must come true."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    diary = tmp_path / "diary"
    diary.touch()
    monkeypatch.setenv("SCRIPTED_ENGINE_DIARY", str(diary))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    settings = WorkerSettings(
        data_dir=tmp_path,
        worker_id="w1",
        renew_every_s=0.1,
        claim_every_s=0.1,
        announce_every_s=0.1,
        drain_timeout_s=5.0,
    )
    await migrate(settings.database_url)
    database = Database(settings.database_url)
    tenant = await Tenants(database).create("team-a")
    socket = tmp_path / "channel.sock"
    broker, channel = LocalBroker(socket), LocalChannel(socket)
    await broker.start()
    yield Stage(
        settings=settings,
        broker=broker,
        channel=channel,
        database=database,
        objects=ObjectStore(settings.object_store_url),
        jobs=Jobs(database).for_tenant(tenant.id),
        tenant_id=tenant.id,
        diary=diary,
    )
    await channel.close()
    await broker.stop()
    await database.close()
