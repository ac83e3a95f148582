"""Spans of compressed sequences: every KV head has its own table, length and biases.

The slots of a head stand in order; a span's own tokens are the last of them. A query sees all slots
up to its own, whichever tokens they came from. Plain torch, for devices without kernels of it.

Shape suffixes: L layers, S spans, K KV heads, G query heads per KV head, H = K * G query heads,
M padded queries, B pages of a head, N padded slots, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.attention import Attends, Extent, Sinks, SpanGroup, attend, split_by_size
from workers.head_pages import HeadPages
from workers.kv_cache import KVCache


@dataclass(slots=True)
class HeadSpan:
    """A span of a compressed sequence whose pages reach to its last token."""

    extent: Extent
    pages: HeadPages

    @property
    def starts(self) -> Tensor:
        """Slots of each head before the span's first query, (L, K)."""
        return self.pages.lengths(self.extent.start)


@dataclass(slots=True)
class HeadGroup:
    """Compressed spans that attend together.

    Attributes:
        tables_LSKB: page numbers, padded with page 0.
        starts_LSK: slots before each span's first query.
        log_counts_LSKN: what is added to logits of the first slots; None: nothing.
    """

    spans: SpanGroup
    cache: KVCache
    tables_LSKB: Tensor
    starts_LSK: Tensor
    log_counts_LSKN: Tensor | None

    def run(
        self, layer: int, window: int | None, qkv: tuple[Tensor, Tensor, Tensor], sinks: Sinks
    ) -> None:
        """See Attends. Every pair of span and KV head is a span of one KV head."""
        assert window is None
        keys, values = self.cache.gather_pages(self.tables_LSKB[layer])
        q = self.spans.gather(qkv[0]).unflatten(2, (keys.shape[1], -1)).transpose(1, 2)
        bias = self._bias(layer, keys.shape[2], sinks.lse.dtype)
        out, lse = attend(
            q.flatten(0, 1),
            keys.flatten(0, 1)[:, None],
            values.flatten(0, 1)[:, None],
            bias.flatten(0, 1),
        )
        pairs = keys.shape[:2]
        self.spans.scatter(out.unflatten(0, pairs).transpose(1, 2).flatten(2, 3), sinks.out)
        if sinks.wants_lse:
            self.spans.scatter(lse.unflatten(0, pairs).transpose(1, 2).flatten(2, 3), sinks.lse)

    def _bias(self, layer: int, num_slots: int, dtype: torch.dtype) -> Tensor:
        """Log-counts where a query sees a slot, -inf elsewhere: (S, K, M, num_slots)."""
        position = self.spans.position_SM
        steps = position - position[:, :1]
        last = self.starts_LSK[layer][..., None] + steps[:, None]
        slots = torch.arange(num_slots, device=last.device)
        bias = torch.zeros(*last.shape, num_slots, dtype=dtype, device=last.device)
        if self.log_counts_LSKN is not None:
            counts = self.log_counts_LSKN[layer]
            bias[..., : counts.shape[-1]] += counts[:, :, None]
        return bias.masked_fill_(slots > last[..., None], float("-inf"))


def head_groups(spans: list[HeadSpan], cache: KVCache) -> list[Attends]:
    """Groups of compressed spans in plain torch."""
    device = cache.storage.device
    groups: list[Attends] = []
    for members in split_by_size([span.extent for span in spans]):
        picked = [spans[i] for i in members]
        counts = log_counts(picked)
        groups.append(
            HeadGroup(
                SpanGroup.of([span.extent for span in picked], device),
                cache,
                page_tables(picked).to(device),
                torch.stack([span.starts for span in picked], dim=1).to(device),
                None if counts is None else counts.to(device),
            )
        )
    return groups


def page_tables(spans: list[HeadSpan]) -> Tensor:
    """(L, S, K, B) int32, padded with page 0."""
    return _stack([span.pages.table_LKM for span in spans])


def log_counts(spans: list[HeadSpan]) -> Tensor | None:
    """(L, S, K, N), padded with 0, which changes nothing; None where no span has any."""
    counts = [span.pages.log_counts_LKN for span in spans]
    if all(each is None for each in counts):
        return None
    return _stack(
        [
            torch.zeros(*span.pages.table_LKM.shape[:2], 0) if each is None else each
            for span, each in zip(spans, counts, strict=True)
        ]
    )


def _stack(parts_LKX: list[Tensor]) -> Tensor:
    """(L, K, X) of several widths -> (L, S, K, X), padded with zeros."""
    most = max(part.shape[2] for part in parts_LKX)
    return torch.stack([F.pad(part, (0, most - part.shape[2])) for part in parts_LKX], dim=1)
