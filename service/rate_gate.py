"""One request's way past the rate limits of its tenant, in OpenAI's headers and words."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from scheduler.domain.bucket_level import MINUTE_MS
from scheduler.domain.errors import QuotaExceeded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping

    from scheduler.domain.bucket_level import BucketLevel
    from scheduler.domain.rate_limit import RateKind
    from scheduler.domain.tenant import Tenant
    from scheduler.store.rate_bucket import Reservation
    from service.rate_limiter import RateLimiter


class RateGate:
    """Lets one HTTP request through as far as its tenant's limits allow.

    Args:
        limiter: the gateway's.
        tenant: whose request it is.
        headers: those of the answer to come, whatever it will be.
    """

    def __init__(
        self, limiter: RateLimiter, tenant: Tenant, headers: MutableMapping[str, str]
    ) -> None:
        self._limiter = limiter
        self._tenant = tenant
        self._headers = headers

    @asynccontextmanager
    async def reserved(self, max_tokens: int, num_used: Callable[[], int]) -> AsyncIterator[None]:
        """Reserve tokens for the block; at its end give back those that it did not use.

        Args:
            max_tokens: the most that the request may come to.
            num_used: what it has come to, asked at the end of the block, however it ends.

        Raises:
            QuotaExceeded: the tenant has too little left.
        """
        if not self._tenant.rate_limits:
            yield
            return
        reservation = await self._limiter.reserve(self._tenant, max_tokens)
        self._headers.update(_headers(reservation.levels))
        if not reservation.granted:
            raise _refusal(reservation, self._tenant)
        try:
            yield
        finally:
            self._limiter.settle(reservation, num_used())


def _refusal(reservation: Reservation, tenant: Tenant) -> QuotaExceeded:
    """Why not; whether waiting helps is a matter of the whole limits, not of a gateway's part."""
    for kind, limit in tenant.rate_limits.items():
        asked = reservation.cost[kind]
        if asked > limit:
            return QuotaExceeded(
                f"This request may come to {asked} {kind}, prompt and answer together, and your "
                f"limit of {limit} {kind} a minute never allows that at once; ask for less.",
                transient=False,
            )
    kind = reservation.scarcest
    left, asked = reservation.levels[kind].left, reservation.cost[kind]
    wait_s = math.ceil(min(reservation.wait_ms(kind), MINUTE_MS) / 1000)
    return QuotaExceeded(
        f"Your limit is {tenant.rate_limits[kind]} {kind} a minute; {left} are left now, and this "
        f"request asks for {asked}; try again in {wait_s} s.",
        retry_after_s=wait_s,
    )


def _headers(levels: Mapping[RateKind, BucketLevel]) -> Iterator[tuple[str, str]]:
    for kind, level in levels.items():
        yield f"x-ratelimit-limit-{kind}", str(level.limit)
        yield f"x-ratelimit-remaining-{kind}", str(level.left)
        yield f"x-ratelimit-reset-{kind}", _duration(level.full_in_ms)


def _duration(milliseconds: int) -> str:
    """As OpenAI writes it: `17ms`, `8.64s`, `1m0s`."""
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest_ms = divmod(milliseconds, MINUTE_MS)
    seconds = f"{rest_ms / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds
