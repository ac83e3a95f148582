"""The program that merges is run as a child, and what it says becomes an error or nothing."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import InvalidInput
from scheduler.tasks import merge_process
from scheduler.tasks.merge_process import merge_in_child

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program of the test's in the place of the real one."""
    path = tmp_path / "stand_in.py"
    monkeypatch.setattr(merge_process, "PROGRAM", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return path


async def test_what_cannot_be_merged_is_told_in_the_programs_words(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()

    with pytest.raises(InvalidInput, match=r"config\.json is missing or not JSON"):
        await merge_in_child(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")

    assert not (tmp_path / "out").exists()


async def test_a_child_that_dies_is_no_verdict(program: Path, tmp_path: Path) -> None:
    program.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")

    with pytest.raises(OSError, match="status -9"):
        await merge_in_child(tmp_path, tmp_path, tmp_path / "out")


async def test_a_cancelled_call_leaves_no_child(program: Path, tmp_path: Path) -> None:
    program.write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r}).write_text("
        "str(os.getpid()))\ntime.sleep(60)\n"
    )
    running = asyncio.create_task(merge_in_child(tmp_path, tmp_path, tmp_path / "out"))
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
