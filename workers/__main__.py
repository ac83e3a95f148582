"""`python -m workers`: one worker, until SIGTERM drains it."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

import structlog

from scheduler.processes import EXIT_UNUSABLE
from scheduler.store.channels import connect_channel
from scheduler.store.database import Database
from scheduler.store.leases import Leases
from scheduler.store.objects import ObjectStore
from scheduler.telemetry import configure_logging
from workers.agent.adapter_cache import AdapterCache
from workers.agent.agent import Agent, EngineKeepsDying, EngineUnusable
from workers.engine_process import engine_command
from workers.settings import WorkerSettings

log = structlog.get_logger(__name__)


async def serve(settings: WorkerSettings) -> int:
    """Run an agent with the real stores; the exit status."""
    database = Database(settings.database_url)
    channel = connect_channel(settings.channel_url)
    objects = ObjectStore(settings.object_store_url)
    cache = AdapterCache(objects, settings.adapter_cache_dir, settings.adapter_cache_bytes)
    agent = Agent(settings, channel, Leases(database), objects, cache, engine_command())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.drain)
    try:
        await agent.run()
    except EngineKeepsDying as error:
        log.error("worker_gives_up", reason=str(error))
        return 1
    except EngineUnusable:
        return EXIT_UNUSABLE
    finally:
        await channel.close()
        await database.close()
    return 0


def main() -> int:
    """Read the settings from the environment and run."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--print-config", action="store_true", help="print the settings and end")
    arguments = parser.parse_args()
    settings = WorkerSettings()
    if arguments.print_config:
        sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
        return 0
    configure_logging(settings.log_level, settings.log_format)
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
