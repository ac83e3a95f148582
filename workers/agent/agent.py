"""Keeps an engine running: starts it, serves with it, starts it anew when it dies."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import deque
from typing import TYPE_CHECKING

import structlog

from scheduler.processes import EXIT_UNUSABLE
from workers.agent.session import EngineSession
from workers.engine_process import EngineProcess, group_environment, thread_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.store.channel import Channel
    from scheduler.store.leases import Leases
    from scheduler.store.objects import ObjectStore
    from workers.agent.adapter_cache import AdapterCache
    from workers.settings import WorkerSettings

DEATH_WINDOW_S = 60.0
REAPING_S = 5.0  # for an engine to end after its pipe has closed
RESTART_PAUSE_S = 0.5

log = structlog.get_logger(__name__)


class EngineKeepsDying(Exception):
    """The engine died so often in a minute that another start would not help."""


class EngineUnusable(Exception):
    """The engine says that it cannot work with these settings."""


class Agent:
    """One worker: its place in the cluster and the engine child behind it.

    Args:
        settings: everything about this worker.
        channel: requests in, frames out, registry.
        leases: jobs in SQL.
        objects: data sets, checkpoints, adapters.
        adapters: adapters on this machine.
        command: program and arguments of the engine child.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        channel: Channel,
        leases: Leases,
        objects: ObjectStore,
        adapters: AdapterCache,
        command: Sequence[str],
    ) -> None:
        self._settings = settings
        self._channel = channel
        self._leases = leases
        self._objects = objects
        self._adapters = adapters
        self._command = tuple(command)
        self._draining = asyncio.Event()
        self._deaths_s: deque[float] = deque(maxlen=settings.max_engine_deaths)

    def drain(self) -> None:
        """Ask for an orderly end: no new work, streams finished, jobs checkpointed."""
        self._draining.set()

    async def run(self) -> None:
        """Serve until drained.

        Raises:
            EngineKeepsDying: so often that starting it again is no use.
            EngineUnusable: it cannot work with these settings.
        """
        shutil.rmtree(self._settings.work_dir, ignore_errors=True)  # of an agent that was killed
        while not self._draining.is_set():
            status = await self._run_engine()
            if self._draining.is_set():
                return
            if status == EXIT_UNUSABLE:
                raise EngineUnusable("The engine cannot start; its own line says why.")
            log.error("engine_died", status=status)
            self._count_death(status)
            await asyncio.sleep(RESTART_PAUSE_S)

    async def _run_engine(self) -> int:
        """Run one engine child from start to end; its exit status."""
        environment = self._settings.engine_environment()
        environment |= thread_environment(self._settings.num_threads)
        environment |= group_environment(self._settings.tensor_parallel)
        engine = await EngineProcess.start(self._command, environment)
        session = EngineSession(
            self._settings, self._channel, self._leases, self._objects, self._adapters, engine
        )
        try:
            await session.run(self._draining)
        finally:
            status = await engine.stop(REAPING_S)
        return status

    def _count_death(self, status: int) -> None:
        now_s = time.monotonic()
        self._deaths_s.append(now_s)
        many = len(self._deaths_s) == self._deaths_s.maxlen
        if many and now_s - self._deaths_s[0] < DEATH_WINDOW_S:
            raise EngineKeepsDying(
                f"The engine ended {len(self._deaths_s)} times within a minute, "
                f"last with status {status}; its own log says why."
            )
