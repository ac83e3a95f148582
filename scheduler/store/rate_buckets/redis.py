"""Rate buckets that all gateways of a cluster share: a hash of Redis for each tenant."""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import TYPE_CHECKING

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from typing_extensions import override

from scheduler.domain.bucket_level import BucketLevel
from scheduler.store.rate_bucket import BucketsDown, RateBuckets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.domain.rate_limit import RateKind, RateLimits

PATIENCE_S = 0.5  # a request waits for it
TAKE = resources.files(__package__).joinpath("take.lua").read_text()


class RedisRateBuckets(RateBuckets):
    """Client of a Redis server that may be shared with others: all keys carry a prefix.

    One script does everything, on one key, by the server's clock. It is never sent twice: what was
    given back twice would be more than there is.
    """

    def __init__(self, url: str, prefix: str = "tandem:") -> None:
        self._redis = redis.asyncio.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0))
        self._take = self._redis.register_script(TAKE)
        self._prefix = prefix

    @override
    async def take(
        self, tenant_id: str, limits: RateLimits, amounts: Mapping[RateKind, int]
    ) -> tuple[bool, dict[RateKind, BucketLevel]]:
        arguments: list[str | int] = []
        for kind, limit in limits.items():
            arguments += [kind.value, limit, amounts.get(kind, 0)]
        try:
            async with asyncio.timeout(PATIENCE_S):
                granted, *parts = await self._take([f"{self._prefix}rate:{tenant_id}"], arguments)
        except (
            redis.exceptions.RedisError,
            OSError,
        ) as error:  # also a server that takes no writes
            raise BucketsDown("The rate limits cannot be looked up; try again.") from error
        levels = {
            kind: BucketLevel(limit, left)
            for (kind, limit), left in zip(limits.items(), parts, strict=True)
        }
        return bool(granted), levels

    @override
    async def close(self) -> None:
        await self._redis.aclose()
