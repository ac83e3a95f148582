"""`python -m workers.remote_follower`: what a group's machines run, all but the first.

The first one runs a worker, `python -m workers`, whose engine leads. A follower ends with the group
that it has joined, or when it finds no leader; the next one waits for the leader's next engine.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog

from scheduler.supervisor import ChildKeepsDying, ChildSpec, Supervisor
from scheduler.telemetry import configure_logging
from workers.engine_process import group_environment, thread_environment
from workers.followers import follower_command
from workers.settings import FollowerSettings

STOP_TIMEOUT_S = 600.0  # by then the leader has drained, or whoever sent SIGTERM has lost patience

log = structlog.get_logger(__name__)


async def follow(settings: FollowerSettings, stopping: asyncio.Event) -> None:
    """Keep a follower running; after `stopping` is set, only until its group ends.

    Raises:
        ChildKeepsDying: it cannot work on this machine.
    """
    environment = thread_environment(settings.num_threads)
    environment |= group_environment(settings.tensor_parallel)
    command = follower_command(settings.group_rank, f"tcp://{settings.group_address}")
    spec = ChildSpec(f"rank {settings.group_rank}", command, environment)
    await Supervisor([spec], stop_timeout_s=STOP_TIMEOUT_S).run(stopping)


async def main() -> int:
    """Run with the settings of the environment until SIGTERM or SIGINT; the exit status."""
    settings = FollowerSettings()
    configure_logging(settings.log_level, settings.log_format)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        await follow(settings, stopping)
    except ChildKeepsDying as error:
        log.error("follower_gives_up", reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
