"""The engine's tiers of adapters as reports."""

from __future__ import annotations

from scheduler.domain.adapter_tier import AdapterTier, Tier, told
from workers.adapter_pool import AdapterPool
from workers.adapter_shelf import AdapterShelf


def slot_tier(pools: list[AdapterPool]) -> AdapterTier:
    """The slots of all base models."""
    digests = [key for pool in pools for key in pool.published]
    return AdapterTier(
        tier=Tier.SLOT,
        num_adapters=len(digests),
        num_hits=sum(pool.num_hits for pool in pools),
        num_misses=sum(pool.num_misses for pool in pools),
        num_loads=sum(pool.num_loads for pool in pools),
        num_evictions=sum(pool.num_evictions for pool in pools),
        digests=told(digests),
    )


def ram_tier(shelf: AdapterShelf) -> AdapterTier:
    """The shelf."""
    return AdapterTier(
        tier=Tier.RAM,
        num_adapters=len(shelf.policy),
        num_hits=shelf.num_hits,
        num_misses=shelf.num_misses,
        num_loads=shelf.num_loads,
        num_evictions=shelf.num_evictions,
        digests=told(key.digest for key in shelf.policy.keys),
    )
