"""What a store of bounded size keeps: what is asked for often, and of that what was asked for last.

A newcomer that fits is kept. One that does not fit takes the place of the least recently asked
entries, but only if it has been asked for more often than each of them: a thousand adapters asked
for once do not drive out a few that are asked for all the time. What is refused is used all the
same, and not kept.

How often is an exact count, halved for all every so many requests, so that old fame fades.

Source: TinyLFU, Einziger, Friedman & Manes 2017, arXiv:1512.00727, sections 3 and 5; there the
counts are a sketch.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from scheduler.policy.pins import protected

KeyT = TypeVar("KeyT", bound=Hashable)

FADE_AFTER = 10  # requests for each entry on the shelf, until all counts are halved
MIN_FADE_AFTER = 1000


@dataclass(slots=True)
class ShelfEntry:
    """One thing on the shelf.

    Attributes:
        num_users: who needs it soon; it stays while there are any.
    """

    num_bytes: int
    is_pinned: bool
    num_users: int = 0


class Shelf(Generic[KeyT]):
    """The bookkeeping of at most `max_bytes`; the things themselves lie elsewhere."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[KeyT, ShelfEntry] = OrderedDict()
        self._demand: Counter[KeyT] = Counter()
        self._num_asked = 0

    def __contains__(self, key: KeyT) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keys(self) -> list[KeyT]:
        """What is kept, most recently asked first."""
        return list(reversed(self._entries))

    def ask(self, key: KeyT, *, is_pinned: bool = False) -> bool:
        """Count a request; whether the thing is here."""
        self._demand[key] += 1
        self._num_asked += 1
        if self._num_asked >= max(MIN_FADE_AFTER, FADE_AFTER * len(self)):
            self._fade()
        entry = self._entries.get(key)
        if entry is None:
            return False
        entry.is_pinned = is_pinned
        self._entries.move_to_end(key)
        return True

    def try_put(self, key: KeyT, num_bytes: int, *, is_pinned: bool = False) -> list[KeyT] | None:
        """Keep a thing that was asked for; what had to go for it, or None: it is not kept."""
        assert key not in self._entries
        victims = self._victims(key, num_bytes, is_pinned)
        if victims is None:
            return None
        for victim in victims:
            self.num_bytes -= self._entries.pop(victim).num_bytes
        self._entries[key] = ShelfEntry(num_bytes, is_pinned)
        self.num_bytes += num_bytes
        return victims

    def hold(self, key: KeyT) -> None:
        """It is needed soon: keep it until released."""
        self._entries[key].num_users += 1

    def release(self, key: KeyT) -> None:
        """Undo one `hold`."""
        entry = self._entries[key]
        entry.num_users -= 1
        assert entry.num_users >= 0

    def _victims(self, key: KeyT, num_bytes: int, is_pinned: bool) -> list[KeyT] | None:
        """Whose place a newcomer takes; None: it is asked for too seldom, or too large."""
        safe = self._safe(key, num_bytes, is_pinned)
        free, victims = self.max_bytes - self.num_bytes, []
        for other, entry in self._entries.items():
            if free >= num_bytes:
                break
            if other not in safe and entry.num_users == 0:
                if key not in safe and self._demand[other] >= self._demand[key]:
                    return None
                free += entry.num_bytes
                victims.append(other)
        return victims if free >= num_bytes else None

    def _safe(self, key: KeyT, num_bytes: int, is_pinned: bool) -> set[KeyT]:
        newcomer = [(key, num_bytes)] if is_pinned else []
        here = [(k, self._entries[k].num_bytes) for k in self.keys if self._entries[k].is_pinned]
        return protected(newcomer + here, self.max_bytes)

    def _fade(self) -> None:
        self._num_asked = 0
        self._demand = Counter({key: n // 2 for key, n in self._demand.items() if n > 1})
