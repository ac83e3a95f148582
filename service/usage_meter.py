"""Counts tokens per tenant and model in memory and writes the sums every few seconds.

A gateway that dies loses at most one interval of counts; a row per request would cost a
transaction per request.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scheduler.store.usage import Usage

log = structlog.get_logger(__name__)

FLUSH_S = 5.0


@dataclass(slots=True)
class _Sum:
    prompt_tokens: int = 0
    output_tokens: int = 0


class UsageMeter:
    """The usage of the last few seconds.

    Args:
        usage: where sums go.
    """

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._sums: dict[tuple[str, date, str], _Sum] = {}

    def add(self, tenant_id: str, model: str, *, prompt_tokens: int, output_tokens: int) -> None:
        """Count tokens of one answer."""
        key = (tenant_id, datetime.now(UTC).date(), model)
        entry = self._sums.setdefault(key, _Sum())
        entry.prompt_tokens += prompt_tokens
        entry.output_tokens += output_tokens

    async def flush(self) -> None:
        """Write and forget the sums; those that cannot be written stay."""
        for key in list(self._sums):
            entry = self._sums.pop(key)
            tenant_id, day, model = key
            try:
                await self._usage.add(
                    tenant_id,
                    day,
                    model,
                    prompt_tokens=entry.prompt_tokens,
                    output_tokens=entry.output_tokens,
                )
            except SQLAlchemyError as error:
                log.warning("usage_not_written", reason=type(error).__name__)
                again = self._sums.setdefault(key, _Sum())
                again.prompt_tokens += entry.prompt_tokens
                again.output_tokens += entry.output_tokens

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Flush every few seconds for as long as the block lasts, and once at its end."""
        task = asyncio.create_task(self._loop())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.flush()

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()
