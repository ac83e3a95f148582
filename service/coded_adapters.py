"""Adapters that a codec has made small, read for the gateway by a child process.

A gateway knows no tensors, and never decodes what a stranger has sent; it starts a child only for
files that are whole and of the right base model.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from scheduler.artefact.coded_file import check_coded_file
from scheduler.domain.adapter import ARCHIVE_FILE, MANIFEST_FILE, AdapterManifest
from scheduler.domain.errors import InvalidInput, Overloaded
from scheduler.tasks.programs import Program, run_program
from service.blame import blaming

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scheduler.artefact.check import Base

MAX_CHILDREN = 1  # of one gateway at a time: each loads the tensor library


class CodedAdapters:
    """Checks and expands coded adapters."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(MAX_CHILDREN)

    async def check(self, folder: Path, base: Base, max_bytes: int) -> AdapterManifest:
        """Check the archive in a folder, and complete the folder.

        Raises:
            InvalidInput: it is torn or hostile, belongs to another base model, or is larger than
                `max_bytes` once it is expanded.
            Overloaded: the child died.
        """
        options: dict[str, str | Path] = {
            "base": base.folder,
            "base-digest": base.digest,
            "max-rank": str(base.max_rank),
            "max-bytes": str(max_bytes),
            "folder": folder,
        }
        await asyncio.to_thread(check_coded_file, folder / ARCHIVE_FILE, base.digest)
        async with self._room:
            with blaming("file", InvalidInput):
                await _run(Program.CHECK_ARCHIVE, options)
        return AdapterManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())

    async def expand(self, folder: Path, base: Path, out: Path) -> None:
        """Write a folder that peft loads.

        Raises:
            InvalidInput: the archive cannot be decoded here.
            Overloaded: the child died.
        """
        async with self._room:
            await _run(Program.EXPAND_ARCHIVE, {"folder": folder, "base": base, "out": out})


async def _run(program: Program, options: Mapping[str, str | Path]) -> None:
    try:
        await run_program(program, options, nice=0)
    except OSError:
        raise Overloaded("The adapter could not be decoded; try again.") from None
