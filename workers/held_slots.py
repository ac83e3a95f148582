"""The slots of one sequence, read from the cache layer by layer, in whichever layout they lie.

Shape suffixes: K KV heads, N slots, M slots of whole pages, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.domain.request import Sequence
from workers.device_copy import upload
from workers.head_pages import HeadPages
from workers.kv_cache import KVCache
from workers.layer_slots import LayerSlots


class HeldSlots:
    """What the KV heads of a sequence hold when `num_tokens` of its tokens are computed.

    Args:
        cache: holds the slots.
        block_table: the sequence's blocks.
        pages: where its heads' slots lie in there; None: side by side.
        num_tokens: tokens that are computed.
    """

    def __init__(
        self, cache: KVCache, block_table: list[int], pages: HeadPages | None, num_tokens: int
    ) -> None:
        self._cache = cache
        self._block_table = block_table
        self._pages = pages
        self._num_tokens = num_tokens

    @classmethod
    def of(cls, sequence: Sequence, num_tokens: int, cache: KVCache) -> HeldSlots:
        """What a sequence holds."""
        layout = sequence.layout
        assert layout is None or isinstance(layout, HeadPages)
        return cls(cache, sequence.block_table, layout, num_tokens)

    @property
    def device(self) -> torch.device:
        """Where they are read to."""
        return self._cache.storage.device

    def read(self, layer: int) -> LayerSlots:
        """The slots of one layer's heads."""
        if self._pages is None:
            return LayerSlots.of_tokens(*self._read_blocks(layer))
        return self._read_pages(layer, self._pages)

    def _read_blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        cache, num_tokens = self._cache, self._num_tokens
        used = self._block_table[: -(-num_tokens // cache.block_size)]
        tables = upload([used], torch.int64, cache.storage.device)
        keys, values = cache.gather(layer, tables)
        return keys[0, :, :num_tokens], values[0, :, :num_tokens]

    def _read_pages(self, layer: int, pages: HeadPages) -> LayerSlots:
        device, record = self._cache.storage.device, pages.record
        assert record is not None
        keys, values = self._cache.gather_pages(pages.table_LKM[layer][None].to(device))
        columns = Columns.of(pages.lengths(self._num_tokens)[layer])
        log_counts = _log_counts(columns, layer, pages)
        return LayerSlots(
            columns.rows(keys[0]),
            columns.rows(values[0]),
            _positions(columns, layer, pages).to(device),
            None if log_counts is None else log_counts.to(device),
            columns.known(record.column_sums_LKN[layer], padding=0).to(device),
            self._num_tokens,
        )


@dataclass(frozen=True, slots=True)
class Columns:
    """Heads of several lengths beside one another, their last slots in one column, on the host.

    Attributes:
        slot_KN: which slot of a head stands in a column; 0 where it is padding.
        is_padding_KN: where a head has no slot; None: all are equally long.
    """

    slot_KN: Tensor
    is_padding_KN: Tensor | None

    @classmethod
    def of(cls, lengths_K: Tensor) -> Columns:
        """Columns for heads of these lengths."""
        most = int(lengths_K.max())
        slot = torch.arange(most, device=lengths_K.device) - (most - lengths_K)[:, None]
        is_padding = slot < 0
        return cls(slot.clamp(min=0), is_padding if bool(is_padding.any()) else None)

    def rows(self, stored_KMD: Tensor) -> Tensor:
        """What is stored of each slot, (K, N, D); padding is zero."""
        if self.is_padding_KN is None:
            return stored_KMD[:, : self.slot_KN.shape[1]]
        device = stored_KMD.device
        head = torch.arange(len(stored_KMD), device=device)[:, None]
        rows = stored_KMD[head, self.slot_KN.to(device)]
        return rows.masked_fill_(self.is_padding_KN[..., None].to(device), 0)

    def known(self, first_KN: Tensor, padding: float) -> Tensor:
        """What is known of each head's first slots, (K, N); later ones have zeros."""
        width = max(0, self.slot_KN.shape[1] - first_KN.shape[1])
        known = F.pad(first_KN, (0, width)).gather(1, self.slot_KN)
        if self.is_padding_KN is None:
            return known
        return known.masked_fill_(self.is_padding_KN, padding)


def _positions(columns: Columns, layer: int, pages: HeadPages) -> Tensor:
    """Positions of the kept tokens, and of those that came after."""
    assert pages.record is not None
    known = columns.known(pages.record.positions_LKN[layer].long(), padding=-1)
    later = columns.slot_KN - pages.lengths(pages.num_tokens)[layer, :, None]
    return torch.where(later < 0, known, pages.num_tokens + later)


def _log_counts(columns: Columns, layer: int, pages: HeadPages) -> Tensor | None:
    """Log-counts of the merged slots, -inf for padding; None where there is neither."""
    counts = pages.log_counts_LKN
    if counts is None and columns.is_padding_KN is None:
        return None
    lines = torch.zeros(len(columns.slot_KN), 0) if counts is None else counts[layer]
    return columns.known(lines.to(columns.slot_KN.device), padding=-torch.inf)
