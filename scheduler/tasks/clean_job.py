"""Remove what only a running job needs, once it is over. Its adapters stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.tasks.context import TaskContext


async def clean_job(job_id: str, context: TaskContext) -> None:
    """Delete the encoded data sets and the training states. Repeating it is harmless."""
    await context.objects.delete(f"datasets/{job_id}")
    await context.objects.delete(f"checkpoints/{job_id}")
