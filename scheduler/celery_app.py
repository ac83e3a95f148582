"""`celery -A scheduler.celery_app worker`: the tasks under Celery, wired from the environment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from celery.signals import setup_logging

from scheduler.settings import SchedulerSettings
from scheduler.store.database import Database
from scheduler.store.objects import ObjectStore
from scheduler.tasks.celery_queue import make_celery
from scheduler.tasks.context import TaskContext
from scheduler.tasks.encode import EncodedSummary, encode_data_set
from scheduler.tasks.registry import TASKS, Task
from scheduler.telemetry import configure_logging

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _settings() -> SchedulerSettings:
    settings = SchedulerSettings()
    if settings.celery_broker_url is None:
        raise ValueError("TANDEM_CELERY_BROKER_URL must name the Redis that carries tasks.")
    return settings


async def _encode(
    model_dir: Path, source: Path, target: Path, enough_tokens: int | None
) -> EncodedSummary:
    return await asyncio.to_thread(encode_data_set, model_dir, source, target, enough_tokens)


async def _run(task: Task, job_id: str, settings: SchedulerSettings) -> None:
    db = Database(settings.database_url)
    context = TaskContext(
        db=db,
        objects=ObjectStore(settings.object_store_url),
        model_dirs=settings.model_dirs(),
        encode=_encode,
    )
    try:
        await task(job_id, context)
    finally:
        await db.close()


def _celery_task(task: Task, settings: SchedulerSettings) -> Callable[[str], None]:
    """Celery's tasks are plain functions, so each runs an event loop of its own."""

    def run(job_id: str) -> None:
        asyncio.run(_run(task, job_id, settings))

    return run


settings = _settings()
app = make_celery(str(settings.celery_broker_url))
for name, task in TASKS.items():
    app.task(name=name)(_celery_task(task, settings))


def _configure(**_options: object) -> None:
    configure_logging(settings.log_level, settings.log_format)


setup_logging.connect(_configure)  # a receiver here keeps Celery from setting up its own
