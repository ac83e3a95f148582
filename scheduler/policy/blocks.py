"""Who holds which block of the memory that K/V and training share: ints only.

Block 0 is the null block; it pads block tables and is never handed out. Sequences take the lowest
empty blocks, one by one; training borrows whole runs from the top, and gives back what is recalled.

A full block may be published under the key of its content. Several sequences may then hold it, and
none of them writes to it. Once nobody holds it, it is idle: free, but still found by its key until
somebody takes it. Sequences take idle blocks when no empty one is left, least recently held first;
the last blocks of a table count as given up before those that they follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scheduler.policy.published import PublishedBlocks

EMPTY, IDLE, TAKEN = b"\0", b"\1", b"\2"
IDLE_AS_EMPTY = bytes.maketrans(IDLE, EMPTY)


class BlockPool:
    """Free map and holders of the blocks 1 .. num_blocks - 1.

    Attributes:
        num_free: blocks that can be taken: empty or idle.
        num_lent: blocks that training has borrowed.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks - 1
        self.block_size = block_size
        self.num_free = self.num_blocks
        self.num_lent = 0
        self._map = bytearray(TAKEN + EMPTY * self.num_blocks)
        self._holders: dict[int, set[str]] = {}
        self._published = PublishedBlocks()
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
        """Hand `count` blocks to `owner` alone; the caller has asked `can_allocate`."""
        assert self.can_allocate(count)
        blocks = self._lowest_empty(count)
        blocks += [self._published.remove_oldest() for _ in range(count - len(blocks))]
        self._take(blocks)
        self._holders.update((block, {owner}) for block in blocks)
        self._fresh += blocks
        return blocks

    def take_fresh(self) -> tuple[int, ...]:
        """Blocks handed out since the last call; they hold what a former owner left."""
        fresh = tuple(block for block in self._fresh if block in self._holders)
        self._fresh = []
        return fresh

    def free(self, owner: str, blocks: Sequence[int]) -> None:
        """Take blocks back from `owner`, who held them in this order."""
        for block in reversed(blocks):
            holders = self._holders[block]
            holders.remove(owner)
            if not holders:
                del self._holders[block]
                self._release(block)

    # ---- known content -------------------------------------------------------------------

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the first keys, up to one that is not published."""
        blocks: list[int] = []
        for key in keys:
            block = self._published.find(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def share(self, owner: str, blocks: Iterable[int]) -> None:
        """Let `owner` too hold blocks that were found."""
        for block in blocks:
            if block not in self._holders:
                self._published.wake(block)
                self._take([block])
            self._holders.setdefault(block, set()).add(owner)

    def num_shared(self, blocks: Iterable[int]) -> int:
        """How many of these blocks more than one holds."""
        return sum(len(self._holders[block]) > 1 for block in blocks)

    def publish(self, owner: str, block: int, key: bytes) -> int:
        """Let a full block be found; returns the one that `owner` holds from now on.

        Where another one is published under the key, that is held in its place: the owner of a
        published block then holds all published blocks before it too.
        """
        known = self._published.find(key)
        if known is None:
            self._published.add(block, key)
        if known is None or known == block:
            return block
        self.share(owner, [known])
        self.free(owner, [block])
        return known

    def unpublish(self, blocks: Iterable[int]) -> None:
        """Let blocks that somebody holds be found no more."""
        for block in blocks:
            assert block in self._holders
            self._published.remove(block)

    # ---- loans ---------------------------------------------------------------------------

    def lend(self, count: int) -> range | None:
        """The highest run of `count` blocks, to be used as plain memory; None if none is free.

        A run of empty blocks if there is one; else what idle blocks in it held is lost.
        """
        start = self._map.rfind(EMPTY * count)
        if start < 0:
            start = self._map.translate(IDLE_AS_EMPTY).rfind(EMPTY * count)
        if start < 0:
            return None
        run = range(start, start + count)
        for block in run:
            self._published.remove(block)
        self._take(run)
        self.num_lent += count
        return run

    def take_back(self, run: range) -> None:
        """End a loan, or the part `run` of one."""
        for block in run:
            assert block not in self._holders
            self._release(block)
        self.num_lent -= len(run)

    # ---- inside --------------------------------------------------------------------------

    def _lowest_empty(self, count: int) -> list[int]:
        """The lowest empty blocks, `count` or all that there are."""
        blocks: list[int] = []
        block = 0
        while len(blocks) < count and (block := self._map.find(EMPTY, block + 1)) > 0:
            blocks.append(block)
        return blocks

    def _take(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            assert self._map[block] != TAKEN[0]
            self._map[block] = TAKEN[0]
            self.num_free -= 1

    def _release(self, block: int) -> None:
        assert self._map[block] == TAKEN[0]
        self.num_free += 1
        if block in self._published:
            self._map[block] = IDLE[0]
            self._published.rest(block)
        else:
            self._map[block] = EMPTY[0]

    def check_conserved(self) -> None:
        """Assert that every block is empty, idle, lent or held."""
        self._published.check_consistent()
        idle = self._published.idle
        assert self._map.count(IDLE) == len(idle)
        assert self._map.count(EMPTY) + len(idle) == self.num_free
        assert all(self._map[block] == IDLE[0] for block in idle)
        assert all(self._map[block] == TAKEN[0] for block in self._holders)
        assert all(self._holders.values())
        assert self.num_free + self.num_lent + len(self._holders) == self.num_blocks
