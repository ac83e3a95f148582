"""Task names, as they stand in the outbox and on Celery's wire, and what they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeAlias

from scheduler.store.outbox import OutboxKind
from scheduler.tasks.adapter_order import carry_out_order
from scheduler.tasks.clean_job import clean_job
from scheduler.tasks.context import TaskContext
from scheduler.tasks.validate_job import validate_job

Task: TypeAlias = Callable[[str, TaskContext], Awaitable[None]]

ADAPTER_ORDER = "adapter_order"  # not in the outbox: its own table is the list of what to do

TASKS: dict[str, Task] = {
    OutboxKind.VALIDATE_JOB.value: validate_job,
    OutboxKind.CLEAN_JOB.value: clean_job,
    ADAPTER_ORDER: carry_out_order,
}


class TaskQueue(StrEnum):
    """Tasks wait only for others of their queue; the values are the names of Celery's queues."""

    JOBS = "tandem"  # seconds each, and a new job waits for them
    ORDERS = "tandem-orders"  # minutes each, and one tenant may have many


def queue_of(task: str) -> TaskQueue:
    """Where a task waits."""
    return TaskQueue.ORDERS if task == ADAPTER_ORDER else TaskQueue.JOBS
