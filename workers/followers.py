"""The other processes of a group, as the leader finds them."""

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
from workers.settings import EngineSettings


@contextmanager
def leading_group(settings: EngineSettings) -> Iterator[Group]:
    """Lead a group of the size that is set; wait for its followers, or start them here."""
    size = settings.tensor_parallel
    if size == 1:
        yield ALONE
    elif settings.group_address is not None:
        yield ProcessGroup(0, size, f"tcp://{settings.group_address}")
    else:
        with _followers_here(size) as meeting:
            yield ProcessGroup(0, size, meeting)


def follower_command(rank: int, meeting: str) -> tuple[str, ...]:
    """Program and arguments of a follower."""
    return (sys.executable, "-m", "workers.engine_follower", str(rank), meeting)


@contextmanager
def _followers_here(size: int) -> Iterator[str]:
    """Run `size` - 1 followers with this process's settings; where they wait for the leader."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-group-"))
    meeting = (folder / "meeting").as_uri()
    followers = [
        subprocess.Popen(follower_command(rank, meeting), preexec_fn=tied_to_parent())
        for rank in range(1, size)
    ]
    try:
        yield meeting
    finally:
        for process in followers:
            process.kill()
            process.wait()
        shutil.rmtree(folder)
