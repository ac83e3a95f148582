"""Who owns which block of the memory that K/V and training share: ints only.

Block 0 is the null block; it pads block tables and is never handed out. Sequences take the lowest
free blocks, one by one; training borrows whole runs from the top, and gives back what is recalled.
"""

from __future__ import annotations

from collections.abc import Iterable

FREE, TAKEN = b"\0", b"\1"


class BlockPool:
    """Free map and owners of the blocks 1 .. num_blocks - 1."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks - 1
        self.block_size = block_size
        self.num_free = self.num_blocks
        self.num_lent = 0
        self._map = bytearray(TAKEN + FREE * self.num_blocks)
        self._owner: dict[int, str] = {}
        self._fresh: list[int] = []

    @property
    def usage(self) -> float:
        """Share of blocks that sequences hold, 0..1."""
        return 1 - (self.num_free + self.num_lent) / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, count: int) -> bool:
        """Whether `count` blocks are free."""
        return count <= self.num_free

    def allocate(self, owner: str, count: int) -> list[int]:
        """Hand the `count` lowest free blocks to `owner`; the caller has asked `can_allocate`."""
        assert self.can_allocate(count)
        blocks: list[int] = []
        for _ in range(count):
            blocks.append(self._map.index(FREE, blocks[-1] + 1 if blocks else 1))
        self._take(blocks)
        self._owner.update(dict.fromkeys(blocks, owner))
        self._fresh += blocks
        return blocks

    def take_fresh(self) -> tuple[int, ...]:
        """Blocks handed out since the last call; they hold what a former owner left."""
        fresh, self._fresh = tuple(self._fresh), []
        return fresh

    def free(self, owner: str, blocks: Iterable[int]) -> None:
        """Take blocks back from `owner`."""
        for block in blocks:
            assert self._owner.pop(block) == owner
            self._release(block)

    # ---- loans ---------------------------------------------------------------------------

    def lend(self, count: int) -> range | None:
        """The highest run of `count` free blocks, to be used as plain memory; None if none is."""
        start = self._map.rfind(FREE * count)
        if start < 0:
            return None
        run = range(start, start + count)
        self._take(run)
        self.num_lent += count
        return run

    def take_back(self, run: range) -> None:
        """End a loan, or the part `run` of one."""
        for block in run:
            assert block not in self._owner
            self._release(block)
        self.num_lent -= len(run)

    # ---- inside --------------------------------------------------------------------------

    def _take(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._map[block] = TAKEN[0]
            self.num_free -= 1

    def _release(self, block: int) -> None:
        assert self._map[block] == TAKEN[0]
        self._map[block] = FREE[0]
        self.num_free += 1

    def check_conserved(self) -> None:
        """Assert that every block is free, lent or owned, once."""
        assert self._map.count(FREE) == self.num_free
        assert all(self._map[block] == TAKEN[0] for block in self._owner)
        assert self.num_free + self.num_lent + len(self._owner) == self.num_blocks
