"""Holds tenants to their rate limits, also while the buckets that gateways share are out of reach.

A gateway then grants its own part of each limit, so that together they grant no more than before.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from scheduler.store.rate_bucket import BucketsDown
from scheduler.store.rate_buckets.memory import MemoryRateBuckets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scheduler.domain.rate_limit import RateKind, RateLimits
    from scheduler.domain.tenant import Tenant
    from scheduler.store.rate_bucket import RateBuckets, Reservation

log = structlog.get_logger(__name__)

RETRY_S = 1.0  # the shared buckets are left alone for so long after they did not answer


class RateLimiter:
    """Reserves requests and tokens, and settles what was reserved.

    Args:
        shared: the buckets of all gateways.
        num_gateways: how many share a limit while those are out of reach.

    Attributes:
        num_refused: requests that this gateway has refused, by the name of their tenant and kind.
    """

    def __init__(self, shared: RateBuckets, num_gateways: int) -> None:
        self.num_refused: Counter[tuple[str, RateKind]] = Counter()
        self._shared = shared
        self._own = MemoryRateBuckets()
        self._num_gateways = num_gateways
        self._alone_until_s = 0.0
        self._settling: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At the end of the block, finish what is being settled and close the buckets."""
        try:
            yield
        finally:
            await asyncio.gather(*self._settling)
            await self._shared.close()

    async def reserve(self, tenant: Tenant, num_tokens: int) -> Reservation:
        """Ask for one request of a tenant that has limits; the answer may be a refusal."""
        reservation = await self._reserve(tenant.id, tenant.rate_limits, num_tokens)
        if not reservation.granted:
            self.num_refused[tenant.name, reservation.scarcest] += 1
        return reservation

    def settle(self, reservation: Reservation, num_tokens: int) -> None:
        """Give back, in the background, the tokens beyond those really used."""
        task = asyncio.create_task(_settle(reservation, num_tokens))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _reserve(self, tenant_id: str, limits: RateLimits, num_tokens: int) -> Reservation:
        if time.monotonic() >= self._alone_until_s:
            try:
                return await self._shared.reserve(tenant_id, limits, num_tokens)
            except BucketsDown as error:
                log.warning("rate_buckets_out_of_reach", reason=repr(error.__cause__))
                self._alone_until_s = time.monotonic() + RETRY_S
        part = {kind: max(limit // self._num_gateways, 1) for kind, limit in limits.items()}
        return await self._own.reserve(tenant_id, part, num_tokens)


async def _settle(reservation: Reservation, num_tokens: int) -> None:
    try:
        await reservation.settle(num_tokens)
    except BucketsDown as error:
        log.warning("rate_reservation_stays_spent", reason=repr(error.__cause__))
