"""What a health check asks of: a database or a channel of its own, for a few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

PATIENCE_S = 5.0


class _Closable(Protocol):
    async def close(self) -> None:
        """Give back what is held."""


T = TypeVar("T", bound=_Closable)


@asynccontextmanager
async def asked_briefly(resource: T) -> AsyncIterator[T]:
    """The resource, closed after the block.

    Raises:
        TimeoutError: the block took longer than a health check waits.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield resource
    finally:
        await resource.close()
