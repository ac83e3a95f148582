"""`python -m scheduler`: relay and reaper; embedded also the channel's broker and the tasks."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

import structlog

from scheduler.settings import SchedulerSettings
from scheduler.store.channels import connect_channel
from scheduler.store.channels.local import LocalBroker, socket_path
from scheduler.store.database import Database, migrate
from scheduler.store.objects import ObjectStore
from scheduler.tasks.celery_queue import CeleryExecutor, make_celery
from scheduler.tasks.context import TaskContext
from scheduler.tasks.encode_pool import EncodePool
from scheduler.tasks.executor import Executor, LocalExecutor
from scheduler.tasks.registry import TaskQueue
from scheduler.tasks.relay import Relay
from scheduler.telemetry import configure_logging

log = structlog.get_logger("scheduler")


async def run(settings: SchedulerSettings, stopping: asyncio.Event) -> None:
    """Run until `stopping` is set; then hand unfinished work back."""
    await migrate(settings.database_url)
    async with AsyncExitStack() as stack:
        db = Database(settings.database_url)
        stack.push_async_callback(db.close)
        if settings.channel_url.startswith("unix://"):
            await stack.enter_async_context(LocalBroker(socket_path(settings.channel_url)))
        channel = connect_channel(settings.channel_url)
        stack.push_async_callback(channel.close)
        executor = _make_executor(settings, db, stack)
        stack.push_async_callback(executor.close)
        relaying = asyncio.create_task(Relay(db, executor, channel, settings).run())
        ending = asyncio.create_task(stopping.wait())
        log.info("scheduler_started")
        await asyncio.wait([relaying, ending], return_when=asyncio.FIRST_COMPLETED)
        for task in (relaying, ending):
            task.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        if not stopping.is_set():
            await relaying  # it ended by itself: its exception ends this process
        await asyncio.gather(relaying, return_exceptions=True)
    log.info("scheduler_stopped")


def _make_executor(settings: SchedulerSettings, db: Database, stack: AsyncExitStack) -> Executor:
    if settings.celery_broker_url is not None:
        return CeleryExecutor(make_celery(settings.celery_broker_url))
    pool = EncodePool(settings.max_parallel_tasks)
    stack.callback(pool.close)
    context = TaskContext(
        db=db,
        objects=ObjectStore(settings.object_store_url),
        model_dirs=settings.model_dirs(),
        encode=pool.encode,
    )
    return LocalExecutor(
        context,
        {
            TaskQueue.JOBS: settings.max_parallel_tasks,
            TaskQueue.ORDERS: settings.max_parallel_orders,
        },
    )


async def main() -> None:
    """Run with the settings of the environment until SIGTERM or SIGINT."""
    settings = SchedulerSettings()
    configure_logging(settings.log_level, settings.log_format)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await run(settings, stopping)


if __name__ == "__main__":
    asyncio.run(main())
