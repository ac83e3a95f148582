from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.policy.blocks import BlockPool

NUM_BLOCKS = 24


class BlockPoolMachine(RuleBasedStateMachine):
    """Sequences and training take and give back; a set of ids says who has what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, 4)
        self.free = set(range(1, NUM_BLOCKS))
        self.owned: dict[str, list[int]] = {}
        self.lent: list[range] = []
        self.count = 0

    @rule(count=st.integers(0, NUM_BLOCKS))
    def allocate(self, count: int) -> None:
        assert self.pool.can_allocate(count) is (count <= len(self.free))
        if count > len(self.free):
            return
        self.count += 1
        blocks = self.pool.allocate(f"s{self.count}", count)
        assert blocks == sorted(self.free)[:count]
        assert set(self.pool.take_fresh()) == set(blocks)
        self.free -= set(blocks)
        self.owned[f"s{self.count}"] = blocks

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.owned)))
        blocks = self.owned.pop(owner)
        self.pool.free(owner, blocks)
        self.free |= set(blocks)

    @rule(count=st.integers(1, NUM_BLOCKS))
    def lend(self, count: int) -> None:
        runs = [
            range(start, start + count)
            for start in range(1, NUM_BLOCKS - count + 1)
            if self.free.issuperset(range(start, start + count))
        ]
        run = self.pool.lend(count)
        assert run == (runs[-1] if runs else None)
        if run is not None:
            self.free -= set(run)
            self.lent.append(run)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def take_back_the_end_of_a_loan(self, data: st.DataObject) -> None:
        run = self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))
        kept = data.draw(st.integers(0, len(run) - 1))
        self.pool.take_back(run[kept:])
        self.free |= set(run[kept:])
        if kept:
            self.lent.append(run[:kept])

    @invariant()
    def every_block_is_somewhere_once(self) -> None:
        self.pool.check_conserved()
        assert self.pool.num_free == len(self.free)
        owned = sum(map(len, self.owned.values()))
        assert abs(self.pool.usage - owned / (NUM_BLOCKS - 1)) < 1e-12


TestBlockPool = BlockPoolMachine.TestCase
