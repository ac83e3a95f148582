"""A child process for tokenising, so that the event loop, which carries tokens, stays free."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from scheduler.tasks.encode import EncodedSummary, encode_data_set

if TYPE_CHECKING:
    from pathlib import Path


class EncodePool:
    """Runs `encode_data_set` in up to `num_processes` children; they start at first use."""

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self._pool = self._make()

    async def encode(
        self, model_dir: Path, source: Path, target: Path, enough_tokens: int | None = None
    ) -> EncodedSummary:
        """Check and tokenise one file; see `encode_data_set`.

        Raises:
            InvalidInput: rows are wrong.
            BrokenProcessPool: the child was killed, perhaps for its memory.
        """
        loop = asyncio.get_running_loop()
        pool = self._pool
        try:
            return await loop.run_in_executor(
                pool, encode_data_set, model_dir, source, target, enough_tokens
            )
        except BrokenProcessPool:
            if self._pool is pool:  # or another call has replaced it already
                self._pool = self._make()
            raise

    def close(self) -> None:
        """End the children; a file being tokenised is dropped."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()

    def _make(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._num_processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_prepare_child,
        )


def _prepare_child() -> None:
    """A terminal's Ctrl-C is the parent's business; its death is ours too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
