"""Memory that training borrows from the K/V pool, and must give back when it is recalled."""

from __future__ import annotations

from torch import Tensor

from scheduler.policy.blocks import BlockPool
from workers.kv_cache import KVCache


class Loan:
    """A run of blocks as plain bytes, until it ends."""

    def __init__(self, pool: BlockPool, cache: KVCache, run: range) -> None:
        self._pool = pool
        self._cache = cache
        self.run = run

    def memory(self) -> Tensor:
        """All of it, (num_bytes,) uint8."""
        return self._cache.memory(self.run)

    def shrink(self, num_blocks: int) -> int:
        """Keep the first `num_blocks` only; returns how many blocks are free again."""
        kept, freed = self.run[:num_blocks], self.run[num_blocks:]
        self._pool.take_back(freed)
        self.run = kept
        return len(freed)

    def end(self) -> int:
        """Give all of it back; returns how many blocks are free again."""
        return self.shrink(0)


class TrainingMemory:
    """The pool as training sees it.

    Args:
        pool: whose blocks are whose.
        cache: where the blocks lie.
        max_bytes: most that training may hold of it.
    """

    def __init__(self, pool: BlockPool, cache: KVCache, max_bytes: int) -> None:
        self._pool = pool
        self._cache = cache
        self.block_bytes = cache.memory(range(1)).numel()
        self.max_blocks = min(pool.num_blocks, max_bytes // self.block_bytes)

    @property
    def num_left(self) -> int:
        """Blocks that training may still borrow, if they are free."""
        return self.max_blocks - self._pool.num_lent

    def blocks_for(self, num_bytes: int) -> int:
        """Blocks that hold `num_bytes`."""
        return -(-num_bytes // self.block_bytes)

    def try_borrow(self, num_blocks: int) -> Loan | None:
        """Blocks that lie side by side; None where there are none."""
        run = self._pool.lend(num_blocks) if num_blocks <= self.num_left else None
        return None if run is None else Loan(self._pool, self._cache, run)
