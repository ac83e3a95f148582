"""Tensors are not for this package: child processes of the workers' code do what needs them."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from typing import TYPE_CHECKING

from scheduler.domain.errors import InvalidInput
from scheduler.processes import EXIT_REFUSED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TASK_NICE = 10
_MAX_SENTENCE_CHARS = 500
MAX_RUN_S = 540.0  # below the time that Celery gives a task


class Program(StrEnum):
    """The modules that may be run, each with its own options."""

    MERGE_EXPORT = "workers.tasks.merge_export"
    COMPRESS = "workers.tasks.compress"
    MERGE_ADAPTERS = "workers.tasks.merge_adapters"
    CHECK_ARCHIVE = "workers.tasks.check_archive"
    EXPAND_ARCHIVE = "workers.tasks.expand_archive"


async def run_program(
    program: str, options: Mapping[str, str | Path], nice: int = TASK_NICE
) -> None:
    """Run a program to its end; when this call is cancelled, the child is killed.

    Args:
        program: its module.
        options: name -> value, without the dashes.
        nice: how far it gives way; a caller that waits in a request gives none.

    Raises:
        InvalidInput: it refuses what it was given, in its own sentence, or takes too long.
        OSError: the child died.
    """
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", program, *given, "--nice", str(nice)),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(MAX_RUN_S):
            _, said = await child.communicate()
    except TimeoutError:
        raise InvalidInput(f"It took more than {MAX_RUN_S:.0f} s; ask for less.") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode == EXIT_REFUSED:
        last_line = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise InvalidInput(last_line[:_MAX_SENTENCE_CHARS])
    if child.returncode != 0:
        raise OSError(f"{program} ended with status {child.returncode}")
