"""Task names, as they stand in the outbox and on Celery's wire, and what they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
