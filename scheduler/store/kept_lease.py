"""Keeping a lease while the work under it takes its time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from scheduler.domain.errors import LostLease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

log = structlog.get_logger(__name__)


@asynccontextmanager
async def kept_lease(renew: Callable[[], Awaitable[bool]], lease_s: float) -> AsyncIterator[None]:
    """Renew a lease for as long as the block lasts; a block whose lease is lost is cut off.

    Args:
        renew: extends the lease; False says that the work is not wanted from us any more.
        lease_s: how long it lasts without that.

    Raises:
        LostLease: the block was cut off.
    """
    try:
        async with asyncio.timeout(None) as limit:
            renewing = asyncio.create_task(_renew_until_lost(renew, lease_s / 6, limit))
            try:
                yield
            finally:
                renewing.cancel()
                await asyncio.gather(renewing, return_exceptions=True)
    except TimeoutError:
        if limit.expired():
            raise LostLease("Somebody else has the work now, or nobody wants it.") from None
        raise


async def _renew_until_lost(
    renew: Callable[[], Awaitable[bool]], every_s: float, limit: asyncio.Timeout
) -> None:
    renewed = True
    while renewed:
        await asyncio.sleep(every_s)
        try:
            renewed = await renew()
        except SQLAlchemyError as error:  # the database is away; the lease may outlast that
            log.warning("lease_not_renewed", reason=type(error).__name__)
    limit.reschedule(asyncio.get_running_loop().time())
