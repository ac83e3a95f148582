"""Tensors are not for this package: a child process of the workers' code merges."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "workers.tasks.merge_export"
_REFUSED = 1  # its exit status when base and adapter cannot be merged
_NICE = 10


async def merge_in_child(base: Path, adapter: Path, out: Path) -> None:
    """Run the program; when this call is cancelled, the child is killed.

    Raises:
        InvalidInput: base and adapter cannot be merged.
        OSError: the child died.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", PROGRAM),
        *("--base", str(base), "--adapter", str(adapter), "--out", str(out)),
        *("--nice", str(_NICE)),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await child.communicate()
    except asyncio.CancelledError:
        child.kill()
        await child.wait()
        raise
    if child.returncode == _REFUSED:
        last_line = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise InvalidInput(last_line[:500])
    if child.returncode != 0:
        raise OSError(f"{PROGRAM} ended with status {child.returncode}")
