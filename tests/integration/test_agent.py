"""An agent between a real channel, a real database, real files and a scripted engine child."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack
import pytest

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.job import FinetuneSpec, JobStatus
from scheduler.domain.messages import (
    TO_GATEWAY,
    Abort,
    JobHint,
    Listening,
    Submit,
    TokenFrame,
    WorkerInfo,
    decode,
    encode,
)
from scheduler.domain.request import RequestBody, WeightedModel
from scheduler.processes import EXIT_UNUSABLE
from scheduler.store.adapters import Adapters
from scheduler.store.board import Board
from scheduler.store.channels.local import LocalBroker, LocalChannel
from scheduler.store.checks import Checks
from scheduler.store.database import Database, migrate
from scheduler.store.files import Files, new_file_id
from scheduler.store.jobs import Job, JobDraft, Jobs, TenantJobs
from scheduler.store.leases import Leases
from scheduler.store.objects import ObjectStore
from scheduler.store.tenants import Tenants
from tests.integration.scripted_engine import DIE, HANG, write_adapter
from workers.agent.adapter_cache import AdapterCache
from workers.agent.agent import Agent, EngineKeepsDying, EngineUnusable
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

ENGINE = Path(__file__).with_name("scripted_engine.py")
REPO = Path(__file__).resolve().parents[2]
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


async def _stored_adapter(
    stage: Stage, folder: Path, content: bytes, adapter_id: str = "a1"
) -> AdapterRef:
    digest, _ = write_adapter(folder, content)
    uri = f"adapters/{adapter_id}/1/v1"
    await stage.objects.put_dir(folder, uri)
    return AdapterRef(adapter_id=adapter_id, version=1, digest=digest, uri=uri)


# ---- requests ----------------------------------------------------------------------------


async def test_a_request_is_answered_on_the_stream_it_names(stage: Stage) -> None:
    async with stage.agent():
        await stage.submit("r1", 1, 2)
        (frame,) = await stage.frames(1)

    assert (frame.request_id, frame.token_ids) == ("r1", (1, 2, 0))


async def test_an_announcement_carries_what_the_engine_says_about_itself(stage: Stage) -> None:
    async with stage.agent():
        await until(lambda: _announced_stats(stage))
        worker = await stage.worker()

    assert worker.capabilities.base_models[0].id == "tiny"
    assert worker.stats is not None
    assert worker.stats.kv_usage == 0.25


async def _announced_stats(stage: Stage) -> bool:
    return (await stage.worker()).stats is not None


async def test_an_adapter_is_fetched_once_and_handed_to_the_engine(
    stage: Stage, tmp_path: Path
) -> None:
    ref = await _stored_adapter(stage, tmp_path / "made", b"weights")

    async with stage.agent():
        for number in range(3):
            await stage.submit(f"r{number}", 1, adapter=ref)
        frames = await stage.frames(3)
        await stage.objects.delete("adapters/a1")
        await stage.submit("r3", 1, adapter=ref)
        frames = await stage.frames(4)

    assert {frame.token_ids for frame in frames} == {(1, 3)}  # three files in its folder


async def test_all_adapters_of_a_mixture_are_handed_to_the_engine(
    stage: Stage, tmp_path: Path
) -> None:
    refs = [await _stored_adapter(stage, tmp_path / name, name.encode(), name) for name in "ab"]
    parts = [WeightedModel(adapter=ref, weight=0.5) for ref in refs]
    gone = AdapterRef(adapter_id="c", version=1, digest="e" * 64, uri="adapters/c/1/v1")

    async with stage.agent():
        await stage.submit("r1", 1, adapter=refs[0])  # one of the two is there already
        await stage.frames(1)
        await stage.submit("r2", 1, mixture=[WeightedModel(adapter=None, weight=0.0), *parts])
        await stage.frames(2)
        await stage.submit("r3", 1, mixture=[parts[0], WeightedModel(adapter=gone, weight=0.5)])
        _, mixed, refused = await stage.frames(3)

    assert mixed.token_ids == (1, 6)  # three files in each folder
    assert refused.error_code == "model_not_found"


async def test_a_damaged_adapter_never_reaches_the_engine(stage: Stage, tmp_path: Path) -> None:
    ref = await _stored_adapter(stage, tmp_path / "made", b"weights")
    await stage.objects.put_bytes(f"{ref.uri}/adapter_model.safetensors", b"tampered")

    async with stage.agent():
        await stage.submit("r1", 1, adapter=ref)
        (frame,) = await stage.frames(1)

    assert frame.error == "adapter_model.safetensors of adapter a1 is damaged."


async def test_an_adapter_that_is_gone_is_an_error_and_not_silence(stage: Stage) -> None:
    gone = AdapterRef(adapter_id="a2", version=1, digest="e" * 64, uri="adapters/a2/1/v1")

    async with stage.agent():
        await stage.submit("r1", 1, adapter=gone)
        (frame,) = await stage.frames(1)

    assert frame.error_code == "model_not_found"


async def test_an_abort_reaches_the_engine(stage: Stage) -> None:
    async with stage.agent():
        worker = await stage.submit("r1", HANG)
        await stage.frames(1)
        await stage.channel.append(worker.inbox, encode(Abort(request_id="r1")))

        await until(lambda: _noted(stage, "abort r1"))


async def _noted(stage: Stage, line: str) -> bool:
    return line in stage.diary.read_text()


async def test_the_requests_of_a_gateway_that_fell_silent_are_stopped(stage: Stage) -> None:
    async with stage.agent(gateway_silence_s=0.3):
        worker = await stage.submit("r1", HANG)
        await stage.frames(1)
        await asyncio.sleep(0.5)
        assert stage.notes("abort") == []  # it has never said that it listens

        await stage.channel.append(worker.inbox, encode(Listening(reply_to=OUT)))
        first, last = await stage.frames(2)
        await until(lambda: _noted(stage, "abort r1"))

    assert (first.seq, first.error) == (0, None)
    assert (last.seq, last.error_code) == (1, "worker_lost")


async def test_a_gateway_that_says_it_listens_keeps_its_requests(stage: Stage) -> None:
    async with stage.agent(gateway_silence_s=0.3):
        worker = await stage.submit("r1", HANG)
        for _ in range(8):
            await stage.channel.append(worker.inbox, encode(Listening(reply_to=OUT)))
            await asyncio.sleep(0.1)

        assert stage.notes("abort") == []


@pytest.mark.parametrize("body", [b"\x81\xa4type\xa4evil", b"\xc1", b"\x81"])
async def test_bytes_that_are_no_message_are_skipped(stage: Stage, body: bytes) -> None:
    async with stage.agent():
        worker = await stage.worker()
        await stage.channel.append(worker.inbox, body)
        await stage.submit("r1", 1)

        assert (await stage.frames(1))[0].request_id == "r1"


async def test_a_request_of_a_newer_gateway_is_sent_back_and_not_left_waiting(
    stage: Stage,
) -> None:
    async with stage.agent():
        worker = await stage.worker()
        submit = {"type": "submit", "request": {"request_id": "r1", "wish": 1}, "reply_to": OUT}
        await stage.channel.append(worker.inbox, msgpack.packb(submit))

        frame = (await stage.frames(1))[0]
        assert (frame.request_id, frame.error_code) == ("r1", "worker_lost")


async def test_a_dead_engine_costs_an_error_frame_and_a_new_boot(stage: Stage) -> None:
    async with stage.agent():
        first = await stage.submit("r1", HANG)
        await stage.frames(1)
        await stage.submit("r2", DIE)
        errors = [frame for frame in await stage.frames(4) if frame.error]
        await until(lambda: _booted_anew(stage, first.boot_id))
        await stage.submit("r3", 7)
        frames = await stage.frames(5)

    # Each error continues its request's numbering: one frame had been sent before.
    assert {(frame.request_id, frame.seq) for frame in errors} == {("r1", 1), ("r2", 1)}
    assert {frame.error_code for frame in errors} == {"worker_lost"}
    assert frames[-1].token_ids == (7, 0)


async def _booted_anew(stage: Stage, boot_id: str) -> bool:
    return (await stage.worker()).boot_id != boot_id


async def test_an_engine_that_keeps_dying_is_given_up(stage: Stage) -> None:
    async with stage.agent() as running:
        for number in range(3):
            worker = await stage.submit(f"r{number}", DIE)
            if number < 2:
                await until(lambda boot_id=worker.boot_id: _booted_anew(stage, boot_id))

        with pytest.raises(EngineKeepsDying, match="3 times within a minute, last with status 9"):
            await asyncio.wait_for(running, PATIENCE_S)


async def test_an_engine_that_cannot_work_is_given_up_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRIPTED_ENGINE_EXIT", str(EXIT_UNUSABLE))

    async with stage.agent() as running:
        with pytest.raises(EngineUnusable):
            await asyncio.wait_for(running, PATIENCE_S)


async def test_a_drained_worker_leaves_the_registry_and_ends(stage: Stage) -> None:
    async with stage.agent() as running:
        await stage.worker()

    assert running.done()
    assert await stage.channel.workers() == []


async def test_a_restarted_broker_costs_a_stall_only(stage: Stage) -> None:
    async with stage.agent():
        await stage.worker()
        await stage.broker.stop()
        await stage.broker.start()
        await stage.submit("r1", 5)

        assert (await stage.frames(1))[0].token_ids == (5, 0)


# ---- jobs --------------------------------------------------------------------------------


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
        await until(lambda: _noted(stage, f"start {job.id} epoch 3"))
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
        await until(lambda: _noted(stage, f"start {job.id} epoch 3"))  # claimed anew, fenced
        await stage.jobs.cancel(job.id)
        await stage.until(job, JobStatus.CANCELLED)


async def test_an_engine_dies_with_its_agent(stage: Stage) -> None:
    others = _children(os.getpid())
    async with stage.agent() as running:
        await stage.worker()
        children = [child for child in _children(os.getpid()) if child not in others]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    assert len(children) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], signal.SIG_DFL)


def _children(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listing.split()]
