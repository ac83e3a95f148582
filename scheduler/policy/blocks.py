"""Who owns which KV block: ints only.

Block 0 is the null block; it pads block tables and is never handed out.
"""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Free list and owners of the blocks 1 .. num_blocks - 1.

    Low ids are handed out first, which keeps the blocks in use close together.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks - 1
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, 0, -1))
        self._owner: dict[int, str] = {}
        self._fresh: list[int] = []

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0..1."""
        return 1 - self.num_free / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, count: int) -> bool:
        """Whether `count` blocks are free."""
        return count <= len(self._free)

    def allocate(self, owner: str, count: int) -> list[int]:
        """Hand `count` blocks to `owner`; the caller has asked `can_allocate`."""
        assert self.can_allocate(count)
        blocks = [self._free.pop() for _ in range(count)]
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
            self._free.append(block)
        self._free.sort(reverse=True)

    def check_conserved(self) -> None:
        """Assert that every block is free or owned, once."""
        assert len(set(self._free)) == len(self._free)
        assert not set(self._free) & set(self._owner)
        assert len(self._free) + len(self._owner) == self.num_blocks
