"""Carries out evaluations, those of any gateway, a few at a time.

Rows in SQL say what is to be done. One is claimed under a lease; a gateway that dies loses it, and
another asks all rows again, which is harmless: answers are greedy, and what follows from them is
written in one transaction.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from scheduler.domain.errors import DomainError, LostLease
from scheduler.gradebook import Gradebook
from scheduler.store.evaluations import EVALUATION_LEASE_S
from scheduler.store.kept_lease import kept_lease
from scheduler.text.exercise import read_exercises
from service.contenders import find_contenders
from service.evaluation_run import EvaluationRun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from scheduler.store.evaluations import EvaluationWork
    from service.gateway import Gateway

log = structlog.get_logger(__name__)

POLL_S = 0.5


class Evaluator:
    """Takes evaluations and carries them out.

    Args:
        gateway: whose engines are asked.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._evaluations = gateway.evaluations
        at_once = gateway.settings.max_evaluations
        self._free = asyncio.Semaphore(at_once)
        self._threads = ThreadPoolExecutor(max(at_once, 1), "evaluation")
        self._running: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work for as long as the block lasts; what is unfinished then is handed back."""
        loop = asyncio.create_task(self._loop())
        try:
            yield
        finally:
            tasks = (loop, *self._running)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _loop(self) -> None:
        while True:
            await self._free.acquire()
            work = await self._claim()
            if work is None:
                self._free.release()
                await asyncio.sleep(POLL_S)
                continue
            task = asyncio.create_task(self._carry_out(work))
            self._running.add(task)
            task.add_done_callback(self._settle)

    async def _claim(self) -> EvaluationWork | None:
        try:
            return await self._evaluations.claim()
        except SQLAlchemyError as error:
            log.warning("evaluations_unreadable", reason=type(error).__name__)
            return None

    def _settle(self, task: asyncio.Task[None]) -> None:
        """Make room; one that crashed is taken again when its lease is over."""
        self._running.discard(task)
        self._free.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("evaluation_crashed", exc_info=task.exception())

    async def _carry_out(self, work: EvaluationWork) -> None:
        try:
            async with kept_lease(partial(self._evaluations.renew, work), EVALUATION_LEASE_S):
                await self._evaluate(work)
        except LostLease:
            return
        except DomainError as error:
            await self._evaluations.fail(work, error.message)
        except FileNotFoundError:
            await self._evaluations.fail(work, "The content of its file is gone.")
        except asyncio.CancelledError:
            await self._evaluations.abandon(work)
            raise

    async def _evaluate(self, work: EvaluationWork) -> None:
        gateway, plan = self._gateway, work.plan
        tenant = await gateway.tenants.get(work.tenant_id)
        adapters = gateway.adapters.for_tenant(tenant.id)
        contenders = await find_contenders(work, adapters, gateway.catalogue)
        base = contenders.models["base"]
        file = await gateway.files.for_tenant(tenant.id).get(plan.file)
        scratch = tempfile.TemporaryDirectory(prefix="tandem-evaluation-")
        with scratch as folder, _until_left() as is_wanted:
            rows = Path(folder) / "rows.jsonl"
            book = Gradebook(plan.graders, is_wanted)
            await gateway.objects.get_file(file.object_key, rows)
            exercises = read_exercises(
                rows,
                base.tokenizer,
                plan.max_rows,
                base.max_model_len,
                must_ask=book.reads("answer"),
                is_wanted=is_wanted,
            )
            run = EvaluationRun(
                gateway.engines, tenant, contenders.models, adapters, plan, book, self._threads
            )
            report = await run.over(exercises)
        await self._evaluations.succeed(work, report, live_before=contenders.live_before)


@contextmanager
def _until_left() -> Iterator[Callable[[], bool]]:
    """Something for threads to ask: true until the block is left, by whichever way."""
    left = threading.Event()
    try:
        yield lambda: not left.is_set()
    finally:
        left.set()
