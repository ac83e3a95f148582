"""Resident adapters: loads them into the arena, shares them by content, evicts the least used.

An adapter in use (by a running sequence or a training job) is never evicted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from scheduler.domain.errors import InvalidInput
from scheduler.policy.columns import ColumnPool
from workers.adapter_arena import AdapterArena, AdapterColumns
from workers.adapter_file import LoadedAdapter
from workers.peft_method import PeftMethod


@dataclass(slots=True)
class AdapterSlot:
    """One resident adapter.

    Attributes:
        key: content digest of a published version, or `job:<id>` of one in training.
        num_users: sequences and jobs that hold it.
        last_used: order of last use, for eviction.
    """

    key: str
    columns: AdapterColumns
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

    @property
    def resident(self) -> tuple[str, ...]:
        """Keys of the resident adapters."""
        return tuple(self._slots)

    def get(self, key: str) -> AdapterSlot | None:
        """The resident adapter of that key."""
        return self._slots.get(key)

    def try_load(self, key: str, adapter: LoadedAdapter) -> AdapterSlot | None:
        """Make an adapter resident; None when all columns are in use.

        Raises:
            InvalidInput: its rank is over the limit, or a weight is not finite.
        """
        slot = self.try_reserve(key, adapter.method)
        if slot is None:
            return None
        adapter.method.lower(adapter.params, self.arena.terms(slot.columns))
        try:
            self.arena.check_finite(slot.columns)
        except InvalidInput:
            self._drop(slot)
            raise
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
        slot = AdapterSlot(key, AdapterColumns(offset, method.rank, method.modules))
        self._slots[key] = slot
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

    def _evict_one(self) -> bool:
        idle = [slot for slot in self._slots.values() if slot.num_users == 0]
        if not idle:
            return False
        self._drop(min(idle, key=lambda slot: slot.last_used))
        return True

    def _drop(self, slot: AdapterSlot) -> None:
        """Free the columns, zeroed: shared GEMMs run over free columns too."""
        del self._slots[slot.key]
        self.arena.clear(slot.columns)
        self._columns.free(slot.key)
