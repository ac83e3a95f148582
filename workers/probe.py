"""`python -m workers.probe`: whether the worker of this container is in the registry.

It is once its engine has loaded the base models, and no longer than a few seconds after it died.
Run with the worker's own settings; for health checks, since a worker has no port to ask.
"""

from __future__ import annotations

import asyncio
import sys

from scheduler.health_check import asked_briefly
from scheduler.store.channels import connect_channel
from workers.settings import WorkerSettings


async def is_announced(settings: WorkerSettings) -> bool:
    """Whether the registry lists the worker that has these settings.

    Raises:
        ChannelDown, TimeoutError: the registry cannot be asked.
    """
    async with asked_briefly(connect_channel(settings.channel_url)) as channel:
        workers = await channel.workers()
    return settings.worker_id in {worker.worker_id for worker in workers}


if __name__ == "__main__":
    sys.exit(not asyncio.run(is_announced(WorkerSettings())))
