"""What every task may use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from scheduler.tasks.encode import EncodedSummary
from scheduler.tasks.programs import run_program

if TYPE_CHECKING:
    from scheduler.store.database import Database
    from scheduler.store.objects import ObjectStore

Encode: TypeAlias = Callable[[Path, Path, Path, int | None], Awaitable[EncodedSummary]]
RunProgram: TypeAlias = Callable[[str, Mapping[str, str | Path]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext:
    """The stores, the base models, and a way to use the CPU without stopping the event loop.

    Attributes:
        model_dirs: base model id -> folder.
        encode: `encode_data_set`, awaited.
        run: runs one of `programs.Program` with its options.
    """

    db: Database
    objects: ObjectStore
    model_dirs: dict[str, Path]
    encode: Encode
    run: RunProgram = run_program
