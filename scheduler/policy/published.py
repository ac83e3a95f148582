"""Which blocks can be found by the key of their content, and which of those nobody holds."""

from __future__ import annotations

from collections import OrderedDict


class PublishedBlocks:
    """Key -> block, both ways, and the idle blocks in the order in which they were last held."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, block: int) -> bool:
        return block in self._key_of

    @property
    def idle(self) -> list[int]:
        """Published blocks that nobody holds, least recently held first."""
        return list(self._idle)

    def find(self, key: bytes) -> int | None:
        """The block of a key."""
        return self._block_of.get(key)

    def add(self, block: int, key: bytes) -> None:
        """Publish a block that somebody holds."""
        assert key not in self._block_of
        assert block not in self._key_of
        self._block_of[key] = block
        self._key_of[block] = key

    def remove(self, block: int) -> None:
        """Let nobody find a block any more, if it was published."""
        if block in self._key_of:
            del self._block_of[self._key_of.pop(block)]
            self._idle.pop(block, None)

    def rest(self, block: int) -> None:
        """Nobody holds a published block from now on."""
        assert block in self._key_of
        self._idle[block] = None

    def wake(self, block: int) -> None:
        """Somebody holds an idle block again."""
        del self._idle[block]

    def remove_oldest(self) -> int:
        """Remove the idle block that was held least recently."""
        block = next(iter(self._idle))
        self.remove(block)
        return block

    def check_consistent(self) -> None:
        """Assert that keys and blocks pair up, and that what is idle is published."""
        assert {block: key for key, block in self._block_of.items()} == self._key_of
        assert self._idle.keys() <= self._key_of.keys()
