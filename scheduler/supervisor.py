"""Starts the service's processes, watches over them, and ends them in the right order.

The channel's broker comes first, then workers, then the gateway; the end runs backwards, so that
the gateway has finished its streams before the engine behind them stops. A child that dies is
started again, with growing pauses; one that cannot stay up takes everything down, with the reason.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from scheduler.processes import EXIT_UNUSABLE, tied_to_parent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_QUICK_DEATHS = 3
QUICK_S = 60.0  # deaths within this time of each other count as quick
FIRST_PAUSE_S = 0.5
STOP_TIMEOUT_S = 45.0  # longer than a worker's own drain timeout

log = structlog.get_logger(__name__)


class ChildKeepsDying(Exception):
    """A process of the service does not stay up."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start one process.

    Attributes:
        name: for people.
        command: program and arguments.
        environment: added to the supervisor's own.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class Supervisor:
    """Keeps a list of processes running.

    Args:
        specs: in the order of starting; stopped in reverse.
        stop_timeout_s: for each child to end after SIGTERM; then it is killed.
    """

    def __init__(
        self, specs: Sequence[ChildSpec], *, stop_timeout_s: float = STOP_TIMEOUT_S
    ) -> None:
        self._specs = tuple(specs)
        self._stop_timeout_s = stop_timeout_s
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._is_stopping = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Run all children until `stopping` is set, then end them one after the other.

        Raises:
            ChildKeepsDying: the others have been ended by then.
        """
        keepers = [asyncio.create_task(self._keep(spec)) for spec in self._specs]
        stop = asyncio.create_task(stopping.wait())
        try:
            done, _ = await asyncio.wait({stop, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()  # raises ChildKeepsDying
        finally:
            self._is_stopping = True
            stop.cancel()
            for spec, keeper in zip(reversed(self._specs), reversed(keepers), strict=True):
                await self._stop(spec.name)
                keeper.cancel()
            await asyncio.gather(stop, *keepers, return_exceptions=True)

    async def _keep(self, spec: ChildSpec) -> None:
        """Start a child again and again.

        Raises:
            ChildKeepsDying: too many quick deaths, or it says that it cannot work.
        """
        deaths_s: deque[float] = deque(maxlen=MAX_QUICK_DEATHS)
        pause_s = FIRST_PAUSE_S
        while not self._is_stopping:
            process = await self._start(spec)
            started_s = time.monotonic()
            status = await process.wait()
            if self._is_stopping:
                return
            log.error("process_died", process=spec.name, status=_describe(status))
            if status == EXIT_UNUSABLE:
                raise ChildKeepsDying(f"{spec.name} cannot start; its own lines above say why.")
            now_s = time.monotonic()
            deaths_s.append(now_s)
            if len(deaths_s) == MAX_QUICK_DEATHS and now_s - deaths_s[0] < QUICK_S:
                raise ChildKeepsDying(
                    f"{spec.name} ended {MAX_QUICK_DEATHS} times within a minute, "
                    f"last with {_describe(status)}; its own lines above say why."
                )
            pause_s = FIRST_PAUSE_S if now_s - started_s > QUICK_S else 2 * pause_s
            await asyncio.sleep(pause_s)

    async def _start(self, spec: ChildSpec) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *spec.command,
            env=os.environ | dict(spec.environment),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C reaches the supervisor only, which keeps the order
            preexec_fn=tied_to_parent(),
        )
        self._processes[spec.name] = process
        log.info("process_started", process=spec.name, pid=process.pid)
        return process

    async def _stop(self, name: str) -> None:
        process = self._processes.get(name)
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(self._stop_timeout_s):
                await process.wait()
        except TimeoutError:
            log.warning("process_killed", process=name)
            process.kill()
            await process.wait()


def _describe(status: int) -> str:
    """Exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    return f"signal {signal.Signals(-status).name}"
