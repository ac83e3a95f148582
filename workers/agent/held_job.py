"""One leased job: its lease and its reports, until it has left this worker.

Two coroutines see to it. One renews the lease and passes on what the tenant wants. The other one
takes the engine's reports one after the other, uploads checkpoints and commits them. `LostLease`
in either ends both: the job belongs to another worker, and nothing more may be written.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from scheduler.domain.errors import LostLease
from scheduler.domain.messages import CheckpointWritten, JobProgress, JobStopped, StopJob
from scheduler.store.leases import Wanted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scheduler.domain.messages import ToEngine
    from scheduler.store.leases import LeasedJob, Leases
    from workers.agent.job_files import JobFiles

ResultT = TypeVar("ResultT")
Report = JobProgress | CheckpointWritten | JobStopped

SQL_RETRY_PAUSE_S = 0.5

log = structlog.get_logger(__name__)


class HeldJob:
    """A job under this worker's lease.

    Args:
        leased: what the claim returned.
        leases: where every write is fenced.
        files: data sets and checkpoints.
        tell_engine: sends an order to the engine child.
        lease_s: length of the lease.
        renew_every_s: pause between renewals.
    """

    def __init__(
        self,
        leased: LeasedJob,
        leases: Leases,
        files: JobFiles,
        tell_engine: Callable[[ToEngine], Awaitable[None]],
        *,
        lease_s: float,
        renew_every_s: float,
    ) -> None:
        self.job_id = leased.job_id
        self.epoch = leased.epoch
        self._leases = leases
        self._files = files
        self._tell_engine = tell_engine
        self._lease_s = lease_s
        self._renew_every_s = renew_every_s
        self._renewed_s = time.monotonic()
        self._wanted = Wanted()
        self._look = asyncio.Event()
        self._reports: deque[Report] = deque()
        self._reported = asyncio.Event()

    def report(self, report: Report) -> None:
        """Take over what the engine says about this job; words about an older lease are dropped."""
        if report.epoch == self.epoch:
            self._reports.append(report)
            self._reported.set()

    def look(self) -> None:
        """Ask SQL at once what the tenant wants."""
        self._look.set()

    async def run(self) -> None:
        """Start the job in the engine and see it through; returns when it has left this worker."""
        renewing = asyncio.create_task(self._keep_lease())
        working = asyncio.create_task(self._work())
        try:
            done, _ = await asyncio.wait({renewing, working}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what it ended with
        except LostLease:
            log.warning("lease_lost", job_id=self.job_id, epoch=self.epoch)
            await self._tell_engine(StopJob(job_id=self.job_id))
        finally:
            renewing.cancel()
            working.cancel()
            await asyncio.gather(renewing, working, return_exceptions=True)
            await self._files.remove()

    async def release(self, *, crashed: bool) -> None:
        """Give the job back to the queue; one that is another worker's by now is left alone."""
        try:
            await self._persist(
                lambda: self._leases.release(self.job_id, self.epoch, crashed=crashed)
            )
            log.info("job_released", job_id=self.job_id, crashed=crashed)
        except LostLease:
            log.info("job_already_elsewhere", job_id=self.job_id)

    # ---- the lease -----------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Renew until cancelled.

        Raises:
            LostLease: the job is another worker's, or may soon be.
        """
        while True:
            try:
                async with asyncio.timeout(self._renew_every_s):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            await self._renew()

    async def _renew(self) -> None:
        asked_s = time.monotonic()
        wanted = await self._persist(
            lambda: self._leases.renew(self.job_id, self.epoch, self._lease_s)
        )
        self._renewed_s = asked_s
        is_news, self._wanted = wanted != self._wanted, wanted
        if is_news and (wanted.cancel or wanted.pause):
            await self._tell_engine(StopJob(job_id=self.job_id, checkpoint=not wanted.cancel))

    async def _persist(self, write: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Repeat a write while SQL does not answer, until the lease may be another's."""
        while True:
            try:
                return await write()
            except SQLAlchemyError as error:
                log.warning("sql_failed", job_id=self.job_id, error=type(error).__name__)
                if time.monotonic() > self._renewed_s + self._lease_s:
                    raise LostLease(f"SQL did not answer in time for {self.job_id}.") from error
                await asyncio.sleep(SQL_RETRY_PAUSE_S)

    # ---- the work ------------------------------------------------------------------------

    async def _work(self) -> None:
        """Bring the files, start the job, and record its reports up to the last one.

        Raises:
            LostLease: the job is another worker's.
        """
        try:
            start = await self._files.bring()
        except OSError as error:
            log.error("job_files_unavailable", job_id=self.job_id, error=str(error))
            await self.release(crashed=True)  # counted, so that it does not go on for ever
            return
        await self._tell_engine(start)
        log.info(
            "job_started",
            job_id=self.job_id,
            epoch=self.epoch,
            resumed=start.resume_from is not None,
        )
        while await self._record(await self._next_report()):
            pass

    async def _next_report(self) -> Report:
        while not self._reports:
            self._reported.clear()
            await self._reported.wait()
        return self._reports.popleft()

    async def _record(self, report: Report) -> bool:
        """Record one report; whether more are to come."""
        if isinstance(report, JobProgress):
            await self._record_steps(report)
            return True
        if isinstance(report, CheckpointWritten):
            return await self._commit(report)
        await self._end(report)
        return False

    async def _record_steps(self, first: JobProgress) -> None:
        """Record a step and those that wait right behind it, in one transaction."""
        steps = [first]
        while self._reports and isinstance(following := self._reports[0], JobProgress):
            steps.append(following)
            self._reports.popleft()
        await self._persist(lambda: self._leases.record_progress(*steps))

    async def _commit(self, written: CheckpointWritten) -> bool:
        """Store a checkpoint and make it official; whether the job goes on."""
        try:
            commit = await self._files.store(written)
        except OSError as error:  # a full disk must not end serving: keep the last good one
            log.error("checkpoint_not_stored", job_id=self.job_id, error=str(error))
            if written.final:
                await self.release(crashed=True)
            return not written.final
        if written.final:
            await self._persist(lambda: self._leases.finish(self.job_id, self.epoch, commit))
            log.info("job_finished", job_id=self.job_id, steps=written.step)
            return False
        await self._persist(lambda: self._leases.commit_checkpoint(self.job_id, self.epoch, commit))
        stale = await self._persist(lambda: self._leases.prune_checkpoints(self.job_id, self.epoch))
        await self._files.committed(written, stale)
        return True

    async def _end(self, stopped: JobStopped) -> None:
        """The engine trains it no more: failed, cancelled, paused, or back to the queue."""
        if stopped.error is not None:
            code, message = stopped.error_code or "training_failed", stopped.error
            await self._persist(lambda: self._leases.fail(self.job_id, self.epoch, code, message))
            log.warning("job_failed", job_id=self.job_id, code=code)
        elif self._wanted.cancel:
            await self._persist(lambda: self._leases.confirm_cancel(self.job_id, self.epoch))
            log.info("job_cancelled", job_id=self.job_id)
        elif self._wanted.pause:
            await self._persist(lambda: self._leases.confirm_pause(self.job_id, self.epoch))
            log.info("job_paused", job_id=self.job_id)
        else:
            await self.release(crashed=False)
