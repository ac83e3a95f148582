"""The shelf against a slow reference, and what it promises whatever happens to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from scheduler.policy.pins import protected
from scheduler.policy.shelf import MIN_FADE_AFTER, Shelf

CAPACITY = 20
KEYS = st.sampled_from("abcdefgh")
ASKS = st.lists(st.tuples(KEYS, st.booleans()), max_size=60)
SIZES = {key: 1 + 3 * place for place, key in enumerate("abcdefgh")}  # 1 to 22: one never fits


@dataclass
class SlowShelf:
    """Looks through all of history at every question; nobody holds anything."""

    history: list[tuple[str, bool]] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)

    def last_asked(self, key: str) -> int:
        return max(i for i, (asked, _) in enumerate(self.history) if asked == key)

    def demand(self, key: str) -> int:
        return sum(asked == key for asked, _ in self.history)

    def is_pinned(self, key: str) -> bool:
        return self.history[self.last_asked(key)][1]

    def is_safe(self, key: str, among: set[str]) -> bool:
        """Its pin holds: with all pinned ones asked later that fit themselves, it fits in half."""
        pinned = sorted(filter(self.is_pinned, among), key=self.last_asked, reverse=True)
        taken = 0
        for other in pinned:
            fits = taken + SIZES[other] <= CAPACITY // 2
            if other == key:
                return fits
            taken += SIZES[other] if fits else 0
        return False

    def ask(self, key: str, is_pinned: bool) -> None:
        """A request, and the offer of the thing if it was not here."""
        self.history.append((key, is_pinned))
        if key in self.kept:
            return
        among = self.kept | {key}
        losers = sorted(
            (k for k in self.kept if not self.is_safe(k, among)), key=self.last_asked
        )  # least recently asked first
        gone: set[str] = set()
        while sum(SIZES[k] for k in among - gone) > CAPACITY:
            if not losers:
                return
            if not self.is_safe(key, among) and self.demand(losers[0]) >= self.demand(key):
                return
            gone.add(losers.pop(0))
        self.kept = among - gone


@given(ASKS)
def test_it_keeps_what_the_reference_keeps(asks: list[tuple[str, bool]]) -> None:
    shelf, slow = Shelf[str](CAPACITY), SlowShelf()

    for key, is_pinned in asks:
        if not shelf.ask(key, is_pinned=is_pinned):
            shelf.try_put(key, SIZES[key], is_pinned=is_pinned)
        slow.ask(key, is_pinned)

        assert set(shelf.keys) == slow.kept
        assert shelf.num_bytes == sum(SIZES[k] for k in slow.kept) <= CAPACITY


@given(ASKS, st.data())
def test_what_is_held_stays_and_the_budget_is_kept(
    asks: list[tuple[str, bool]], data: st.DataObject
) -> None:
    shelf, held = Shelf[str](CAPACITY), dict[str, int]()
    for key, is_pinned in asks:
        if not shelf.ask(key, is_pinned=is_pinned):
            shelf.try_put(key, SIZES[key], is_pinned=is_pinned)
        if key in shelf and data.draw(st.booleans()):
            shelf.hold(key)
            held[key] = held.get(key, 0) + 1
        elif held and data.draw(st.booleans()):
            done = data.draw(st.sampled_from(sorted(held)))
            shelf.release(done)
            held[done] -= 1
            held = {k: n for k, n in held.items() if n}

        assert held.keys() <= set(shelf.keys)
        assert shelf.num_bytes <= CAPACITY


@given(st.lists(st.tuples(KEYS, st.integers(1, 9)), unique_by=lambda pair: pair[0]))
def test_pins_protect_no_more_than_half_and_the_most_recent_first(
    pinned: list[tuple[str, int]],
) -> None:
    safe = protected(pinned, CAPACITY)

    assert sum(size for key, size in pinned if key in safe) <= CAPACITY // 2
    if pinned and pinned[0][1] <= CAPACITY // 2:
        assert pinned[0][0] in safe


def asked(shelf: Shelf[str], key: str) -> bool:
    found = shelf.ask(key)
    if not found:
        shelf.try_put(key, 1)
    return found


def test_a_thousand_asked_once_do_not_drive_out_those_asked_always() -> None:
    shelf, hot = Shelf[str](10), [f"hot{i}" for i in range(10)]
    for key in hot * 3:
        asked(shelf, key)

    for i in range(1000):
        asked(shelf, f"cold{i}")
        asked(shelf, hot[i % 10])

    assert set(shelf.keys) == set(hot)


def test_going_round_more_than_fits_still_finds_the_share_that_fits() -> None:
    """Where least recently used alone would find nothing, ever."""
    shelf = Shelf[str](10)

    hits = [asked(shelf, f"k{i % 20}") for i in range(2000)]

    assert sum(hits[200:]) / len(hits[200:]) > 0.4


def test_old_fame_fades() -> None:
    shelf, random = Shelf[str](5), Random(1)
    for i in range(5 * MIN_FADE_AFTER):
        asked(shelf, f"old{i % 5}")

    for _ in range(8 * MIN_FADE_AFTER):
        asked(shelf, f"new{random.randrange(5)}")

    assert set(shelf.keys) == {f"new{i}" for i in range(5)}
