"""What an agent does when its engine, its broker or itself comes to an end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scheduler.processes import EXIT_UNUSABLE
from tests.integration.agent.conftest import PATIENCE_S, until
from tests.integration.scripted_engine import DIE, HANG
from workers.agent.agent import EngineKeepsDying, EngineUnusable

if TYPE_CHECKING:
    from tests.integration.agent.conftest import Stage


async def test_a_dead_engine_costs_an_error_frame_and_a_new_boot(stage: Stage) -> None:
    async with stage.agent():
        first = await stage.submit("r1", HANG)
        await stage.frames(1)
        await stage.submit("r2", DIE)
        errors = [frame for frame in await stage.frames(4) if frame.error]
        await until(lambda: _booted_anew(stage, first.boot_id))
        await stage.submit("r3", 7)
        frames = await stage.frames(5)

    # Each error continues its request's numbering: one frame had been sent before.
    assert {(frame.request_id, frame.seq) for frame in errors} == {("r1", 1), ("r2", 1)}
    assert {frame.error_code for frame in errors} == {"worker_lost"}
    assert frames[-1].token_ids == (7, 0)


async def _booted_anew(stage: Stage, boot_id: str) -> bool:
    return (await stage.worker()).boot_id != boot_id


async def test_an_engine_that_keeps_dying_is_given_up(stage: Stage) -> None:
    async with stage.agent() as running:
        for number in range(3):
            worker = await stage.submit(f"r{number}", DIE)
            if number < 2:
                await until(lambda boot_id=worker.boot_id: _booted_anew(stage, boot_id))

        with pytest.raises(EngineKeepsDying, match="3 times within a minute, last with status 9"):
            await asyncio.wait_for(running, PATIENCE_S)


async def test_an_engine_that_cannot_work_is_given_up_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRIPTED_ENGINE_EXIT", str(EXIT_UNUSABLE))

    async with stage.agent() as running:
        with pytest.raises(EngineUnusable):
            await asyncio.wait_for(running, PATIENCE_S)


async def test_a_drained_worker_leaves_the_registry_and_ends(stage: Stage) -> None:
    async with stage.agent() as running:
        await stage.worker()

    assert running.done()
    assert await stage.channel.workers() == []


async def test_a_restarted_broker_costs_a_stall_only(stage: Stage) -> None:
    async with stage.agent():
        await stage.worker()
        await stage.broker.stop()
        await stage.broker.start()
        await stage.submit("r1", 5)

        assert (await stage.frames(1))[0].token_ids == (5, 0)


async def test_an_engine_dies_with_its_agent(stage: Stage) -> None:
    others = _children(os.getpid())
    async with stage.agent() as running:
        await stage.worker()
        children = [child for child in _children(os.getpid()) if child not in others]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    assert len(children) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], signal.SIG_DFL)


def _children(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listing.split()]
