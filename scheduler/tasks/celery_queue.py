"""Celery as the carrier of tasks: messages are hints that hold a task's name and a job id."""

from __future__ import annotations

import asyncio

from celery import Celery
from kombu.exceptions import OperationalError

from scheduler.tasks.executor import Executor
from scheduler.tasks.registry import TASKS, TaskQueue, queue_of

SOFT_SHUTDOWN_S = 30.0
MAX_TASK_S = 600


def make_celery(broker_url: str) -> Celery:
    """A Celery app set for short idempotent tasks whose truth is in SQL."""
    app = Celery("tandem", broker=broker_url)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # A worker takes from all of these, or from those that its -Q names.
        task_queues={name: {"exchange": name, "routing_key": name} for name in TaskQueue},
        task_default_queue=TaskQueue.JOBS,
        task_routes={task: {"queue": queue_of(task)} for task in TASKS},
        # A check may be repeated, and a lost one is hinted again: so late acks, and no counting.
        task_acks_late=True,
        # Two of one task cannot both write, so one that outlives its Redis is left to end.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # as when Redis is full
        task_soft_time_limit=MAX_TASK_S,
        task_time_limit=MAX_TASK_S + 30,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_soft_shutdown_timeout=SOFT_SHUTDOWN_S,
        worker_enable_soft_shutdown_on_idle=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"socket_connect_timeout": 5, "socket_timeout": 30},
    )
    return app


class CeleryExecutor(Executor):
    """Sends hints to the broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    async def submit(self, task: str, job_id: str) -> None:
        """Send a message that names the task and the job."""
        try:
            await asyncio.to_thread(
                self._app.send_task, task, args=[job_id], ignore_result=True, retry=False
            )
        except OperationalError as error:
            raise ConnectionError(f"The Celery broker does not answer: {error}") from error

    async def close(self) -> None:
        """Close the connections to the broker; what was sent stays sent."""
        await asyncio.to_thread(self._app.close)
