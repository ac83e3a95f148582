"""Resident adapters: loads them into the arena, shares them by content, evicts the least used.

An adapter in use (by a running sequence or a training job) is never evicted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from scheduler.domain.errors import InvalidInput
from scheduler.policy.columns import ColumnPool
from scheduler.policy.pins import protected
from workers.adapter_arena import AdapterArena, AdapterColumns
from workers.lowered_adapter import LoweredAdapter
from workers.peft_method import PeftMethod

JOB_PREFIX = "job:"


@dataclass(slots=True)
class AdapterSlot:
    """One resident adapter.

    Attributes:
        key: content digest of a published version, or `job:<id>` of one in training.
        num_users: sequences and jobs that hold it.
        last_used: order of last use, for eviction.
        is_pinned: its owner wants it to stay.
    """

    key: str
    columns: AdapterColumns
    is_pinned: bool = False
    num_users: int = 0
    last_used: int = 0


class AdapterPool:
    """Slots of one base model's arena."""

    def __init__(self, arena: AdapterArena, max_rank: int) -> None:
        self.arena = arena
        self.max_rank = max_rank
        self._columns = ColumnPool(arena.num_columns)
        self._slots: dict[str, AdapterSlot] = {}
        self._clock = itertools.count()
        self.num_hits = 0
        self.num_misses = 0
        self.num_loads = 0
        self.num_evictions = 0

    @property
    def resident(self) -> tuple[str, ...]:
        """Keys of the resident adapters, most recently used first."""
        slots = sorted(self._slots.values(), key=lambda slot: slot.last_used, reverse=True)
        return tuple(slot.key for slot in slots)

    @property
    def published(self) -> tuple[str, ...]:
        """Digests of the resident versions, most recently used first."""
        return tuple(key for key in self.resident if not key.startswith(JOB_PREFIX))

    def get(self, key: str) -> AdapterSlot | None:
        """The resident adapter of that key."""
        return self._slots.get(key)

    def try_load(self, key: str, adapter: LoweredAdapter, *, is_pinned: bool) -> AdapterSlot | None:
        """Make an adapter resident; None when all columns are in use.

        Raises:
            InvalidInput: its rank is over the limit.
        """
        slot = self.try_reserve(key, adapter.method)
        if slot is not None:
            slot.is_pinned = is_pinned
            adapter.copy_into(self.arena.terms(slot.columns))
            self.num_loads += 1
        return slot

    def try_reserve(self, key: str, method: PeftMethod) -> AdapterSlot | None:
        """Zeroed columns for an adapter; None when all columns are in use.

        Raises:
            InvalidInput: its rank is over the limit.
        """
        if method.rank > self.max_rank:
            raise InvalidInput(
                f"Rank {method.rank} is over this service's limit of {self.max_rank}.", param="rank"
            )
        offset = self._columns.try_allocate(key, method.rank)
        while offset is None and self._evict_one():
            offset = self._columns.try_allocate(key, method.rank)
        if offset is None:
            return None
        slot = AdapterSlot(key, method.columns(offset), last_used=next(self._clock))
        self._slots[key] = slot
        return slot

    def find(self, key: str, *, is_pinned: bool) -> AdapterSlot | None:
        """The resident adapter that a request asks for, which counts as its use."""
        slot = self._slots.get(key)
        if slot is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        slot.is_pinned = is_pinned
        slot.last_used = next(self._clock)
        return slot

    def acquire(self, slot: AdapterSlot) -> None:
        """Hold a slot; it stays until released."""
        slot.num_users += 1
        slot.last_used = next(self._clock)

    def release(self, slot: AdapterSlot) -> None:
        """Let go; an adapter nobody holds may be evicted."""
        slot.num_users -= 1
        assert slot.num_users >= 0

    def discard(self, slot: AdapterSlot) -> None:
        """Release a training slot and free its columns at once."""
        self.release(slot)
        assert slot.num_users == 0
        self._drop(slot)

    def evict_idle(self) -> None:
        """Drop every adapter that nobody holds: one between two free ranges would part them."""
        while self._evict_one():
            pass

    def _evict_one(self) -> bool:
        """Drop the least recently used adapter that nobody holds, pinned ones after all others.

        Even those go at last: scattered over the arena they could leave no range for a large rank.
        """
        idle = [slot for slot in self._slots.values() if slot.num_users == 0]
        if not idle:
            return False
        safe = self._protected()
        self._drop(min(idle, key=lambda slot: (slot.key in safe, slot.last_used)))
        self.num_evictions += 1
        return True

    def _protected(self) -> set[str]:
        slots = [self._slots[key] for key in self.resident]
        pinned = ((slot.key, slot.columns.rank) for slot in slots if slot.is_pinned)
        return protected(pinned, self._columns.num_columns)

    def _drop(self, slot: AdapterSlot) -> None:
        """Free the columns, zeroed: shared GEMMs run over free columns too."""
        del self._slots[slot.key]
        self.arena.clear(slot.columns)
        self._columns.free(slot.key)
