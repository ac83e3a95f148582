"""Attention of single-token spans, reading K and V in place: no gather of pages.

Blocks are handed out low ids first, so the blocks of all running sequences lie close together.
Both batched GEMMs run over the whole range of pages between the first and the last block in use,
each page with the query of the sequence that owns it; the (small) scores are sorted by sequence in
between. Pages in the range that no span owns are computed for nobody: their output is dropped.

Shape suffixes: S spans, N pages of the range, B blocks of the longest table, K KV heads, G query
heads per KV head, P tokens of a page, D head_dim, T rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.attention import Extent, Sinks
from workers.kv_cache import KVCache

MAX_RANGE_FACTOR = 2  # pages in the range per page in use, above which gathering is cheaper


@dataclass(slots=True)
class DecodeGroup:
    """Spans of one token each, and the range of pages that holds all their keys.

    Attributes:
        rows_S: the spans' rows in the batch.
        tables_SB: block tables, counted from the first page of the range; padding repeats 0.
        owner_N: span that owns a page, or S for none.
        place_N: the page's place in its owner's table.
        num_keys_S: keys that each span sees.
    """

    cache: KVCache
    first: int
    rows_S: Tensor
    tables_SB: Tensor
    owner_N: Tensor
    place_N: Tensor
    num_keys_S: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    @classmethod
    def try_of(
        cls,
        extents: list[Extent],
        tables: list[list[int]],
        cache: KVCache,
        device: torch.device,
    ) -> DecodeGroup | None:
        """Lay the spans out; None where pages are shared or lie too far apart."""
        used = [
            table[: -(-extent.num_keys // cache.block_size)]
            for table, extent in zip(tables, extents, strict=True)
        ]
        blocks = [block for table in used for block in table]
        first, size = min(blocks), max(blocks) - min(blocks) + 1
        if len(set(blocks)) < len(blocks) or size > MAX_RANGE_FACTOR * len(blocks):
            return None
        owner, place = [len(used)] * size, [0] * size
        width = max(map(len, used))
        for span, table in enumerate(used):
            for i, block in enumerate(table):
                owner[block - first], place[block - first] = span, i
        padded = [[b - first for b in table] + [0] * (width - len(table)) for table in used]
        return cls(
            cache,
            first,
            torch.tensor([extent.row for extent in extents], device=device),
            torch.tensor(padded, device=device),
            torch.tensor(owner, device=device),
            torch.tensor(place, device=device),
            torch.tensor([extent.num_keys for extent in extents], device=device),
        )

    def run(
        self, layer: int, window: int | None, qkv: tuple[Tensor, Tensor, Tensor], sinks: Sinks
    ) -> None:
        """Attend for one layer; scores of foreign pages, which may be NaN, are overwritten."""
        q_THD, out_THD = qkv[0], sinks.out
        keys, values = self._pages(layer)
        spans, blocks = self.tables_SB.shape
        pages, kv_heads, size, head_dim = keys.shape
        q = q_THD[self.rows_S].unflatten(1, (kv_heads, -1)) * head_dim**-0.5
        q = torch.cat((q, q.new_zeros(1, *q.shape[1:])))[self.owner_N]
        scores = torch.bmm(q.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
        group = scores.shape[1]
        scores = scores.view(pages, kv_heads, group, size)[self.tables_SB]
        scores = scores.permute(0, 2, 3, 1, 4).reshape(spans, kv_heads, group, blocks * size)
        hidden = self._hidden(window, blocks * size)
        weights = torch.softmax(scores.masked_fill_(hidden, float("-inf")), dim=-1)
        weights = weights.view(spans, kv_heads, group, blocks, size).permute(0, 3, 1, 2, 4)
        weights = weights[self.owner_N.clamp(max=spans - 1), self.place_N]
        out = torch.bmm(weights.flatten(0, 1), values.flatten(0, 1))
        total = out.new_zeros(spans + 1, kv_heads * group, head_dim)
        total.index_add_(0, self.owner_N, out.view(pages, kv_heads * group, head_dim))
        out_THD[self.rows_S] = total[:spans]

    def _pages(self, layer: int) -> tuple[Tensor, Tensor]:
        """K and V pages of the range as views, (N, K, P, D) each."""
        pages = slice(self.first, self.first + len(self.owner_N))
        return self.cache.keys[layer][pages], self.cache.values[layer][pages]

    def _hidden(self, window: int | None, num_keys: int) -> Tensor:
        """Where a span does not see a key: (S, 1, 1, num_keys)."""
        if window not in self.masks:
            keys = torch.arange(num_keys, device=self.rows_S.device)
            hidden = keys >= self.num_keys_S[:, None]
            if window is not None:
                hidden |= keys < self.num_keys_S[:, None] - window
            self.masks[window] = hidden[:, None, None]
        return self.masks[window]
