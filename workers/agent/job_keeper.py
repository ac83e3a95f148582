"""The jobs of one engine: claimed from SQL, routed by id, given back when the engine ends."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from scheduler.policy.job_placement import JobPatience, training_slack
from workers.agent.held_job import HeldJob, Report
from workers.agent.job_files import JobFiles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scheduler.domain.messages import ToEngine
    from scheduler.store.leases import LeasedJob, Leases
    from scheduler.store.objects import ObjectStore
    from workers.settings import WorkerSettings

log = structlog.get_logger(__name__)


class JobKeeper:
    """Claims jobs, while there is room, that nobody with more slack takes; and holds them.

    Args:
        settings: limits and periods.
        leases: SQL.
        objects: the jobs' files.
        tell_engine: sends an order to the engine child.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        leases: Leases,
        objects: ObjectStore,
        tell_engine: Callable[[ToEngine], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._leases = leases
        self._objects = objects
        self._tell_engine = tell_engine
        self._held: dict[str, HeldJob] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._look = asyncio.Event()
        self._patience = JobPatience(settings.claim_every_s)

    def hint(self, job_id: str) -> None:
        """Something about a job has changed in SQL."""
        if job_id in self._held:
            self._held[job_id].look()
        else:
            self._look.set()

    def report(self, report: Report) -> None:
        """Pass on what the engine says about a job; nobody wants to know about a lost one."""
        if report.job_id in self._held:
            self._held[report.job_id].report(report)

    async def claim_for_ever(
        self, base_models: frozenset[str], serving: Callable[[], float]
    ) -> None:
        """Claim queued jobs, whenever hinted and every so often, unless others have more slack.

        Args:
            base_models: which the engine holds.
            serving: the share of the engine that requests take now, 0 to 1.
        """
        while True:
            self._look.clear()
            self._raise_failures()
            pause_s = self._settings.claim_every_s
            try:
                pause_s = min(pause_s, await self._claim(base_models, serving()))
            except SQLAlchemyError as error:
                log.warning("claim_failed", error=type(error).__name__)
            try:
                async with asyncio.timeout(pause_s):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def settle(self, timeout_s: float) -> None:
        """Let jobs that the engine has ended reach their state, as far as time allows."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=timeout_s)

    async def release_all(self, *, crashed: bool) -> None:
        """Stop working on all jobs and give them back to the queue."""
        held, running = dict(self._held), list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for job in held.values():
            await job.release(crashed=crashed)

    async def _claim(self, base_models: frozenset[str], serving: float) -> float:
        """Claim what this worker need not leave to others; seconds until it has to look again."""
        room = self._settings.max_jobs - len(self._held)
        if room <= 0:
            return self._settings.claim_every_s
        queued = await self._leases.claimable(base_models)
        self._patience.see(queued, time.monotonic())
        for job_id in [job_id for job_id in queued if job_id not in self._held][:room]:
            slack = training_slack(serving, len(self._held))
            if left_s := self._patience.left_s(job_id, slack, time.monotonic()):
                return left_s  # those behind it stay behind it
            leased = await self._leases.claim(
                job_id, self._settings.worker_id, self._settings.lease_s
            )
            if leased is not None:
                self._hold(leased)
        return self._settings.claim_every_s

    def _hold(self, leased: LeasedJob) -> None:
        folder = self._settings.work_dir / leased.job_id / str(leased.epoch)
        folder.mkdir(parents=True)
        job = HeldJob(
            leased,
            self._leases,
            JobFiles(self._objects, leased, folder),
            self._tell_engine,
            lease_s=self._settings.lease_s,
            renew_every_s=self._settings.renew_every_s,
        )
        self._held[leased.job_id] = job
        self._running[leased.job_id] = asyncio.create_task(self._run(job))

    async def _run(self, job: HeldJob) -> None:
        await job.run()
        del self._held[job.job_id], self._running[job.job_id]
        self._look.set()  # there is room again

    def _raise_failures(self) -> None:
        """Let a job's unforeseen error end the worker; a silent one would hang the job."""
        for task in self._running.values():
            if task.done() and not task.cancelled():
                task.result()
