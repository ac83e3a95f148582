"""What the rows of one token range of a pack have in common in every layer, made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.adapter_arena import AdapterColumns
from workers.adapter_rows import AdapterRows, AdapterRun
from workers.attention import AttendsBack
from workers.batch import TrainWindow
from workers.model import DecoderConfig
from workers.span_attention import pack_attention
from workers.train_pack import TrainPack


@dataclass(frozen=True, slots=True)
class PackRange:
    """Rows counted from the range's first token.

    Attributes:
        groups: what attends for them.
        adapters: one run of the job's adapter.
    """

    groups: Sequence[AttendsBack]
    adapters: AdapterRows

    @classmethod
    def of(
        cls, pack: TrainPack, start: int, stop: int, columns: AdapterColumns, config: DecoderConfig
    ) -> PackRange:
        """Tokens [start, stop) of a pack."""
        window = TrainWindow(pack, start, stop, 0, pack.layers)
        adapters = AdapterRows([AdapterRun(0, stop - start, columns)])
        return cls(pack_attention(window, config), adapters)
