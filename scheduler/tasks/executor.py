"""Where tasks run: here, or wherever Celery brings them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import structlog

from scheduler.tasks.registry import TASKS, queue_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.tasks.context import TaskContext
    from scheduler.tasks.registry import TaskQueue

log = structlog.get_logger(__name__)


class Executor(ABC):
    """Takes hints; what must not be lost stands in SQL and is hinted again."""

    @abstractmethod
    async def submit(self, task: str, job_id: str) -> None:
        """Have `TASKS[task]` run on the job, soon and at least once.

        Raises:
            OSError: not now; try again.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop; unfinished tasks hand their work back."""


class LocalExecutor(Executor):
    """Runs tasks in this process, a few at a time; a hint about a running one is dropped.

    Args:
        context: what the tasks use.
        max_parallel: how many of each queue run at once.
    """

    def __init__(self, context: TaskContext, max_parallel: Mapping[TaskQueue, int]) -> None:
        self._context = context
        self._rooms = {queue: asyncio.Semaphore(most) for queue, most in max_parallel.items()}
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def submit(self, task: str, job_id: str) -> None:
        """Start the task, or let it wait behind the running ones of its queue."""
        key = (task, job_id)
        if key in self._running:
            return
        running = asyncio.create_task(self._run(task, job_id), name=f"{task} {job_id}")
        self._running[key] = running
        running.add_done_callback(lambda done: self._forget(key, done))

    async def close(self) -> None:
        """Cancel what runs and wait until it has handed its work back."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, task: str, job_id: str) -> None:
        async with self._rooms[queue_of(task)]:
            await TASKS[task](job_id, self._context)

    def _forget(self, key: tuple[str, str], done: asyncio.Task[None]) -> None:
        del self._running[key]
        if not done.cancelled() and (error := done.exception()) is not None:
            task, job_id = key
            log.error("task_failed", task=task, job_id=job_id, exc_info=error)
