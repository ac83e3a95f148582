"""Which rank columns of the adapter arena belong to whom: first fit over contiguous ranges."""

from __future__ import annotations


class ColumnPool:
    """Contiguous ranges of `num_columns` rank columns.

    Column ranges are named by their owner; an owner holds one range at most.
    """

    def __init__(self, num_columns: int) -> None:
        self.num_columns = num_columns
        self._ranges: dict[str, tuple[int, int]] = {}

    def try_allocate(self, owner: str, count: int) -> int | None:
        """Offset of the first gap of `count` columns, now owned; None when there is none."""
        assert owner not in self._ranges
        offset = 0
        for start, length in sorted(self._ranges.values()):
            if start - offset >= count:
                break
            offset = start + length
        if offset + count > self.num_columns:
            return None
        self._ranges[owner] = (offset, count)
        return offset

    def free(self, owner: str) -> None:
        """Give an owner's range back."""
        del self._ranges[owner]

    @property
    def num_used(self) -> int:
        """Columns in use."""
        return sum(length for _, length in self._ranges.values())
