"""One kind of rate buckets per file; `connect_rate_buckets` picks by the channel's URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.store.rate_buckets.memory import MemoryRateBuckets
from scheduler.store.rate_buckets.redis import RedisRateBuckets

if TYPE_CHECKING:
    from scheduler.store.rate_bucket import RateBuckets


def connect_rate_buckets(channel_url: str) -> RateBuckets:
    """Redis's where gateways meet there; embedded there is one gateway, which keeps its own."""
    if channel_url.startswith("unix://"):
        return MemoryRateBuckets()
    return RedisRateBuckets(channel_url)
