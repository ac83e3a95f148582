"""Which pinned things are protected: the most recently used ones that fit in half of the room.

A pin is a tenant's wish, and room belongs to all: without a bound, pins could leave nobody else
any. Beyond the half a pinned thing is treated like any other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

PINNED_SHARE = 0.5


def protected(pinned: Iterable[tuple[KeyT, int]], capacity: int) -> set[KeyT]:
    """Keys under protection, of (key, size) pairs that are given most recently used first."""
    room, kept = int(PINNED_SHARE * capacity), set()
    for key, size in pinned:
        if size <= room:
            room -= size
            kept.add(key)
    return kept
