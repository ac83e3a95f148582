"""The pool against a slow model of it: who holds what, what can be found, and who goes first."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.policy.blocks import BlockPool

NUM_BLOCKS = 24
TEXTS = st.text("ab", max_size=6)  # a letter is what one block holds; many texts begin alike


@dataclass
class Holder:
    """One sequence: its blocks, the text that they will hold, and how much of it is published."""

    text: str
    blocks: list[int]
    num_published: int

    @property
    def keys(self) -> list[bytes]:
        """A key of each block: all of the text up to its end."""
        return [self.text[: i + 1].encode() for i in range(len(self.text))]


class BlockPoolMachine(RuleBasedStateMachine):
    """Sequences and training take, share, publish and give back; dicts say who has what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, 4)
        self.empty = set(range(1, NUM_BLOCKS))
        self.idle: dict[int, bytes] = {}  # in the order in which they came to rest
        self.published: dict[bytes, int] = {}
        self.holders: dict[str, Holder] = {}
        self.lent: list[range] = []
        self.count = 0
        self.has_lost_faith = False

    @rule(text=TEXTS, spare=st.integers(0, 3))
    def begin(self, text: str, spare: int) -> None:
        """Hold what is known of a text, and take blocks for the rest, if they are free."""
        self.count += 1
        owner, holder = f"s{self.count}", Holder(text, [], 0)
        found = self.pool.find(holder.keys)
        assert found == self._known(holder.keys)
        self.pool.share(owner, found)
        for block in found:
            self.idle.pop(block, None)
        missing = len(text) + spare - len(found)
        fits = missing <= len(self.empty) + len(self.idle)
        assert self.pool.can_allocate(missing) is fits
        self.holders[owner] = holder
        holder.blocks, holder.num_published = found, len(found)
        if fits:
            holder.blocks = found + self._take(owner, missing)
        else:
            self._end(owner)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), count=st.integers(1, 4))
    def fill_and_publish(self, data: st.DataObject, count: int) -> None:
        owner = data.draw(st.sampled_from(sorted(self.holders)))
        holder = self.holders[owner]
        stop = min(len(holder.text), holder.num_published + count)
        for place in range(holder.num_published, stop):
            key, own = holder.keys[place], holder.blocks[place]
            known = self.published.setdefault(key, own)
            holder.blocks[place] = self.pool.publish(owner, own, key)
            assert holder.blocks[place] == known
            if known != own:
                self.idle.pop(known, None)
                self.empty.add(own)
            holder.num_published += 1

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self._end(data.draw(st.sampled_from(sorted(self.holders))))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def end_and_let_nothing_be_found(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.holders)))
        blocks = self.holders[owner].blocks
        self.pool.unpublish(blocks)
        self.published = {k: b for k, b in self.published.items() if b not in blocks}
        self.has_lost_faith = True
        self._end(owner)

    @rule(count=st.integers(1, NUM_BLOCKS))
    def lend(self, count: int) -> None:
        run = self.pool.lend(count)
        assert run == (_highest_run(self.empty, count) or _highest_run(self._free(), count))
        if run is not None:
            self.empty -= set(run)
            self._forget(run)
            self.lent.append(run)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def take_back_the_end_of_a_loan(self, data: st.DataObject) -> None:
        run = self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))
        kept = data.draw(st.integers(0, len(run) - 1))
        self.pool.take_back(run[kept:])
        self.empty |= set(run[kept:])
        if kept:
            self.lent.append(run[:kept])

    @invariant()
    def every_block_is_empty_idle_lent_or_held(self) -> None:
        self.pool.check_conserved()
        assert self.pool.num_free == len(self._free())
        held = self._held()
        assert abs(self.pool.usage - len(held) / (NUM_BLOCKS - 1)) < 1e-12
        lent = {block for run in self.lent for block in run}
        parts = [self.empty, set(self.idle), held, lent]
        assert sorted(b for part in parts for b in part) == list(range(1, NUM_BLOCKS))

    @invariant()
    def a_published_block_is_held_with_all_before_it(self) -> None:
        for holder in self.holders.values():
            for place in range(holder.num_published):
                known = self.published.get(holder.keys[place])
                assert self.has_lost_faith or holder.blocks[place] == known

    @invariant()
    def a_block_that_is_still_written_belongs_to_one_sequence(self) -> None:
        writable = [b for h in self.holders.values() for b in h.blocks[h.num_published :]]
        assert len(writable) == len(set(writable))
        assert not set(writable) & set(self.published.values())

    def _take(self, owner: str, count: int) -> list[int]:
        expected = sorted(self.empty)[:count]
        for block in list(self.idle)[: count - len(expected)]:
            self._check_no_other_rests_on(block)
            expected.append(block)
            self._forget([block])
        blocks = self.pool.allocate(owner, count)
        assert blocks == expected
        assert set(self.pool.take_fresh()) == set(blocks)
        self.empty -= set(blocks)
        return blocks

    def _check_no_other_rests_on(self, block: int) -> None:
        """A parent goes after its children, which could not be found without it."""
        parent = self.idle[block]
        if not self.has_lost_faith:
            assert not any(k != parent and k.startswith(parent) for k in self.published)

    def _end(self, owner: str) -> None:
        holder = self.holders.pop(owner)
        self.pool.free(owner, holder.blocks)
        key_of = {block: key for key, block in self.published.items()}
        for block in reversed(holder.blocks):
            if block in self._held():
                continue
            if block in key_of:
                self.idle[block] = key_of[block]
            else:
                self.empty.add(block)

    def _forget(self, blocks: list[int] | range) -> None:
        for block in blocks:
            if block in self.idle:
                del self.published[self.idle.pop(block)]

    def _known(self, keys: list[bytes]) -> list[int]:
        count = next((i for i, k in enumerate(keys) if k not in self.published), len(keys))
        return [self.published[key] for key in keys[:count]]

    def _held(self) -> set[int]:
        return {block for holder in self.holders.values() for block in holder.blocks}

    def _free(self) -> set[int]:
        return self.empty | set(self.idle)


def _highest_run(blocks: set[int], count: int) -> range | None:
    runs = [range(start, start + count) for start in range(1, NUM_BLOCKS - count + 1)]
    return next((run for run in reversed(runs) if blocks.issuperset(run)), None)


def test_a_block_that_was_given_up_before_its_step_is_not_cleared() -> None:
    pool = BlockPool(NUM_BLOCKS, 4)
    pool.free("gone", pool.allocate("gone", 3))
    run = pool.lend(NUM_BLOCKS - 1)

    assert run == range(1, NUM_BLOCKS)
    assert pool.take_fresh() == ()


TestBlockPool = BlockPoolMachine.TestCase


def test_a_block_that_is_published_twice_stays_its_holders() -> None:
    pool = BlockPool(3, 4)
    (block,) = pool.allocate("a", 1)

    assert [pool.publish("a", block, b"key") for _ in range(2)] == [block, block]

    pool.check_conserved()
    assert pool.num_free == 1
    pool.free("a", [block])
    assert pool.num_free == 2
