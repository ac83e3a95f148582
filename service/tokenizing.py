"""Runs long tokenisation off the event loop, so that one long prompt stalls no other stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
INLINE_CHARS = 8_192  # about a millisecond of work; a thread hop costs a tenth of that


async def off_loop_when_long(num_chars: int, work: Callable[[], T]) -> T:
    """Do `work` here when the text is short, else in a thread."""
    if num_chars <= INLINE_CHARS:
        return work()
    return await asyncio.to_thread(work)
