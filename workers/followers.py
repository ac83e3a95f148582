"""The other processes of a group, as the leader starts them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scheduler.processes import tied_to_parent
from workers.group import ALONE, Group
from workers.process_group import ProcessGroup


@contextmanager
def leading_group(size: int) -> Iterator[Group]:
    """Start `size` - 1 followers with this process's settings, and lead them."""
    if size == 1:
        yield ALONE
        return
    folder = Path(tempfile.mkdtemp(prefix="tandem-group-"))
    meeting = folder / "meeting"
    followers = [_follower(rank, meeting) for rank in range(1, size)]
    try:
        yield ProcessGroup(0, size, meeting)
    finally:
        for process in followers:
            process.kill()
            process.wait()
        shutil.rmtree(folder)


def _follower(rank: int, meeting: Path) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "workers.engine_follower", str(rank), str(meeting))
    return subprocess.Popen(command, preexec_fn=tied_to_parent())
