"""What attention does not need to know of kept slots, but their next compression does."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """The first N slots of K heads in L layers, on the host; heads that keep fewer end with zeros.

    Attributes:
        positions_LKN: of the tokens that they stand for, int32.
        column_sums_LKN: attention that they had got, float32.
    """

    positions_LKN: Tensor
    column_sums_LKN: Tensor

    @property
    def num_bytes(self) -> int:
        """Host memory that it takes."""
        return self.positions_LKN.nbytes + self.column_sums_LKN.nbytes
