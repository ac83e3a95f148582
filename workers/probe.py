"""`python -m workers.probe`: whether the worker of this container is in the registry.

It is once its engine has loaded the base models, and no longer than a few seconds after it died.
Run with the worker's own settings; for health checks, since a worker has no port to ask.
"""

from __future__ import annotations

import asyncio
import sys

from scheduler.store.channels import connect_channel
from workers.settings import WorkerSettings

PATIENCE_S = 5.0


async def is_announced(settings: WorkerSettings) -> bool:
    """Whether the registry lists the worker that has these settings.

    Raises:
        ChannelDown, TimeoutError: the registry cannot be asked.
    """
    channel = connect_channel(settings.channel_url)
    try:
        async with asyncio.timeout(PATIENCE_S):
            workers = await channel.workers()
    finally:
        await channel.close()
    return settings.worker_id in {worker.worker_id for worker in workers}


if __name__ == "__main__":
    sys.exit(not asyncio.run(is_announced(WorkerSettings())))
