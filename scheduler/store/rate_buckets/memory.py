"""Rate buckets of one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from typing_extensions import override

from scheduler.domain.bucket_level import BucketLevel
from scheduler.store.rate_bucket import RateBuckets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scheduler.domain.rate_limit import RateKind, RateLimits


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class MemoryRateBuckets(RateBuckets):
    """Buckets in a dictionary.

    Args:
        clock_ms: what they fill by.
    """

    def __init__(self, clock_ms: Callable[[], int] = _monotonic_ms) -> None:
        self._clock_ms = clock_ms
        self._stored: dict[str, tuple[int, dict[RateKind, BucketLevel]]] = {}

    @override
    async def take(
        self, tenant_id: str, limits: RateLimits, amounts: Mapping[RateKind, int]
    ) -> tuple[bool, dict[RateKind, BucketLevel]]:
        now_ms = self._clock_ms()
        levels = self._levels(tenant_id, limits, now_ms)
        granted = all(levels[kind].wait_ms(amounts.get(kind, 0)) == 0 for kind in limits)
        if granted:
            levels = {kind: level.less(amounts.get(kind, 0)) for kind, level in levels.items()}
        self._stored[tenant_id] = now_ms, levels
        return granted, levels

    def _levels(
        self, tenant_id: str, limits: RateLimits, now_ms: int
    ) -> dict[RateKind, BucketLevel]:
        stored_ms, stored = self._stored.get(tenant_id, (now_ms, {}))
        levels = {}
        for kind, limit in limits.items():
            before = stored.get(kind, BucketLevel.full(limit))
            levels[kind] = BucketLevel(limit, before.parts).later(now_ms - stored_ms)
        return levels

    @override
    async def close(self) -> None:
        """Nothing to close."""
