"""Children are started in order, started again, given up on, and ended in reverse order."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from scheduler import supervisor
from scheduler.processes import EXIT_UNUSABLE
from scheduler.supervisor import ChildKeepsDying, ChildSpec, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Notes its start and its end in a file; $STUBBORN makes it deaf to SIGTERM.
CHILD = """
import os, signal, sys, time
name, diary = sys.argv[1], sys.argv[2]

def note(word):
    with open(diary, "a") as file:
        file.write(f"{name} {word} {os.getpid()}\\n")

def end(*_):
    note("ended")
    sys.exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if "STUBBORN" in os.environ else end)
note("started")
time.sleep(60)
"""

PARENT = """
import asyncio, sys
from scheduler.processes import EXIT_UNUSABLE
from scheduler.supervisor import ChildSpec, Supervisor
spec = ChildSpec("a", (sys.executable, sys.argv[1], "a", sys.argv[2]))
asyncio.run(Supervisor([spec]).run(asyncio.Event()))
"""


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    path = tmp_path / "diary"
    path.touch()
    return path


@pytest.fixture
def child(tmp_path: Path, diary: Path) -> Callable[..., ChildSpec]:
    program = tmp_path / "child.py"
    program.write_text(CHILD)

    def make(name: str, **environment: str) -> ChildSpec:
        return ChildSpec(name, (sys.executable, str(program), name, str(diary)), environment)

    return make


async def test_children_end_in_reverse_order(child: Callable[..., ChildSpec], diary: Path) -> None:
    stopping = asyncio.Event()
    running = asyncio.create_task(Supervisor([child("a"), child("b"), child("c")]).run(stopping))
    await _until(lambda: len(_entries(diary, "started")) == 3)

    stopping.set()
    await running

    assert [name for name, _ in _entries(diary, "ended")] == ["c", "b", "a"]


async def test_a_child_that_is_killed_is_started_again(
    child: Callable[..., ChildSpec], diary: Path
) -> None:
    stopping = asyncio.Event()
    running = asyncio.create_task(Supervisor([child("a")]).run(stopping))
    await _until(lambda: len(_entries(diary, "started")) == 1)

    os.kill(_entries(diary, "started")[0][1], signal.SIGKILL)
    await _until(lambda: len(_entries(diary, "started")) == 2)
    stopping.set()
    await running

    assert len(_entries(diary, "ended")) == 1


async def test_a_child_that_does_not_stay_up_ends_all_with_its_reason(
    child: Callable[..., ChildSpec], diary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.05)
    broken = ChildSpec("broken", (sys.executable, "-c", "raise SystemExit(5)"))

    with pytest.raises(ChildKeepsDying, match=r"broken ended 3 times .* exit status 5"):
        await Supervisor([child("a"), broken]).run(asyncio.Event())

    assert len(_entries(diary, "started")) == len(_entries(diary, "ended"))


async def test_a_child_that_says_it_cannot_work_is_not_started_again() -> None:
    hopeless = ChildSpec("hopeless", (sys.executable, "-c", f"raise SystemExit({EXIT_UNUSABLE})"))

    with pytest.raises(ChildKeepsDying, match="hopeless cannot start"):
        await asyncio.wait_for(Supervisor([hopeless]).run(asyncio.Event()), 10)


async def test_a_child_that_will_not_end_is_killed(
    child: Callable[..., ChildSpec], diary: Path
) -> None:
    stopping = asyncio.Event()
    stubborn = Supervisor([child("a", STUBBORN="1")], stop_timeout_s=0.3)
    running = asyncio.create_task(stubborn.run(stopping))
    await _until(lambda: len(_entries(diary, "started")) == 1)

    stopping.set()
    await running

    assert not _is_alive(_entries(diary, "started")[0][1])


async def test_children_die_with_a_supervisor_that_is_killed(
    child: Callable[..., ChildSpec], diary: Path
) -> None:
    program = str(child("a").command[1])
    parent = subprocess.Popen([sys.executable, "-c", PARENT, program, str(diary)])
    await _until(lambda: len(_entries(diary, "started")) == 1)

    parent.kill()
    parent.wait()

    await _until(lambda: not _is_alive(_entries(diary, "started")[0][1]))


def _entries(diary: Path, word: str) -> list[tuple[str, int]]:
    lines = [line.split() for line in diary.read_text().splitlines()]
    return [(name, int(pid)) for name, what, pid in lines if what == word]


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def _until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "It did not happen in time."
        await asyncio.sleep(0.02)
