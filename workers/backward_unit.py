"""The smallest piece of training that runs backward."""

from __future__ import annotations

from dataclasses import dataclass

from workers.adapter_arena import AdapterColumns
from workers.pack_range import PackRange
from workers.term_grads import TermGrads
from workers.train_pack import TrainPack


@dataclass(slots=True)
class BackwardUnit:
    """One layer of one pack over tokens [start, stop)."""

    pack: TrainPack
    layer: int
    start: int
    stop: int
    columns: AdapterColumns
    grads: TermGrads
    shared: PackRange

    @property
    def num_tokens(self) -> int:
        """Rows of the unit."""
        return self.stop - self.start
