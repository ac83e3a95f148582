"""A process dies at each of the file operations that a checkpoint consists of."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, NoReturn

import pytest

from tests.unit.workers.test_job_checkpoint import job, write
from workers.job_checkpoint import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIED = 77
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.link", "os.truncate"}


def _write_and_die(root: Path, step: int, operation: int) -> NoReturn:
    """Write a checkpoint and end, without a word, just before its n-th operation on a file."""
    left = operation

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event not in OPERATIONS or not str(arguments[0]).startswith(str(root)):
            return
        left -= 1
        if left < 0:
            os._exit(DIED)

    sys.addaudithook(count)  # in this process, which is about to end
    write(root, step)
    os._exit(0)


def _run(root: Path, step: int, operation: int) -> int:
    """Exit status of a child that writes and dies."""
    pid = os.fork()
    if pid == 0:
        _write_and_die(root, step, operation)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize(
    "repeats",
    [pytest.param(1, marks=pytest.mark.e2e), pytest.param(20, marks=pytest.mark.chaos)],
)
def test_a_crash_at_any_point_of_a_checkpoint_leaves_the_old_one_or_the_new_one(
    repeats: int, tmp_path: Path, found: Callable[[int, str, str], None]
) -> None:
    num_crashes = 0
    for repeat in range(repeats):
        operation, status = 0, DIED
        while status == DIED:
            root = tmp_path / f"{repeat}-{operation}"
            write(root, 1)
            status = _run(root, 2, operation)
            visible = sorted(path.name for path in root.glob("step-*"))
            assert visible in (["step-1"], ["step-1", "step-2"])
            for name in visible:  # raises if a file is missing, cut off or altered
                assert read_checkpoint(root / name, job(1)[0]).state.step == int(name[-1])
            num_crashes += status == DIED
            operation += 1
            shutil.rmtree(root)
        assert status == 0
        assert operation > 12
    found(num_crashes, "old or new, never torn", "old or new, never torn")
