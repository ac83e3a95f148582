"""Programs are run as children, and what they say becomes an error or nothing."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import InvalidInput
from scheduler.tasks import programs
from scheduler.tasks.programs import Program, run_program

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program of the test's own."""
    path = tmp_path / "stand_in.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return path


async def test_what_cannot_be_merged_is_told_in_the_programs_words(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()

    options = {name: tmp_path / name for name in ("base", "adapter", "out")}

    with pytest.raises(InvalidInput, match=r"config\.json is missing or not JSON"):
        await run_program(Program.MERGE_EXPORT, options)

    assert not (tmp_path / "out").exists()


async def test_a_child_that_dies_is_no_verdict(program: Path) -> None:
    program.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")

    with pytest.raises(OSError, match="status -9"):
        await run_program("stand_in", {})


async def test_a_bug_in_a_program_is_no_verdict(program: Path) -> None:
    program.write_text("raise AttributeError\n")

    with pytest.raises(OSError, match="status 1"):
        await run_program("stand_in", {})


async def test_a_program_that_takes_too_long_is_ended(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "MAX_RUN_S", 1.5)
    program.write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r}).write_text("
        "str(os.getpid()))\ntime.sleep(60)\n"
    )

    with pytest.raises(InvalidInput, match="took more than"):
        await run_program("stand_in", {})

    assert sys.platform != "linux" or not _lives(int((tmp_path / "pid").read_text()))


async def test_a_cancelled_call_leaves_no_child(program: Path, tmp_path: Path) -> None:
    program.write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r}).write_text("
        "str(os.getpid()))\ntime.sleep(60)\n"
    )
    running = asyncio.create_task(run_program("stand_in", {}))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        await asyncio.sleep(0.02)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert sys.platform != "linux" or not _lives(int((tmp_path / "pid").read_text()))


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False
