"""Spans that attend together in plain torch: the path of devices without kernels.

Shape suffixes: S spans of a group, M padded queries, N padded keys, K KV heads, D head_dim, T rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workers.activations import LayerActivations
from workers.attention import (
    Attends,
    AttendsBack,
    Extent,
    SavedAttention,
    Sinks,
    SpanGroup,
    attend,
    attend_backward,
    split_by_size,
)
from workers.batch import TrainWindow
from workers.kv_cache import KVCache


class KeySource(Protocol):
    """Where the keys of a group's spans come from."""

    def keys_values(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """K and V, (S, K, N, D) each, given those of the batch's own rows."""


@dataclass(slots=True)
class RowKeys:
    """Spans that start at position 0: their keys are the batch's own rows."""

    rows_SN: Tensor

    def keys_values(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """See KeySource."""
        del layer
        return k_TKD[self.rows_SN].transpose(1, 2), v_TKD[self.rows_SN].transpose(1, 2)


@dataclass(slots=True)
class PagedKeys:
    """Spans whose keys lie in the paged cache; tables are padded with the null block."""

    cache: KVCache
    tables_SB: Tensor

    def keys_values(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """See KeySource."""
        del k_TKD, v_TKD
        return self.cache.gather(layer, self.tables_SB)


@dataclass(slots=True)
class PackKeys:
    """Spans of a training pack: their keys lie in the pack's buffers."""

    layers: list[LayerActivations]
    tokens_SN: Tensor

    def keys_values(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """See KeySource."""
        del k_TKD, v_TKD
        saved = self.layers[layer]
        return (
            saved["k"][self.tokens_SN].transpose(1, 2),
            saved["v"][self.tokens_SN].transpose(1, 2),
        )


@dataclass(slots=True)
class AttentionGroup:
    """Spans that attend together, and the source of their keys."""

    spans: SpanGroup
    source: KeySource

    def run(
        self, layer: int, window: int | None, qkv: tuple[Tensor, Tensor, Tensor], sinks: Sinks
    ) -> None:
        """Attend for one layer; write output rows and log-sum-exps into `sinks`."""
        q_THD, k_TKD, v_TKD = qkv
        keys, values = self.source.keys_values(layer, k_TKD, v_TKD)
        bias = self.spans.bias(window, keys.shape[2], sinks.lse.dtype)
        out, lse = attend(self.spans.gather(q_THD), keys, values, bias)
        self.spans.scatter(out, sinks.out)
        if sinks.wants_lse:
            self.spans.scatter(lse, sinks.lse)

    def backward(
        self,
        layer: int,
        window: int | None,
        saved: SavedAttention,
        grad_q: Tensor,
        grad_kv: tuple[Tensor, Tensor],
    ) -> None:
        """Fill the spans' rows of `grad_q`, and add to the pack's key and value gradients."""
        spans, source = self.spans, self.source
        assert isinstance(source, PackKeys)
        keys, values = source.keys_values(layer, grad_q, grad_q)
        bias = spans.bias(window, keys.shape[2], grad_kv[0].dtype)
        valid = spans.query_mask_SM[..., None, None]
        part_q, part_k, part_v = attend_backward(
            spans.gather(saved.grad) * valid,
            spans.gather(saved.q),
            keys,
            values,
            spans.gather(saved.out),
            spans.gather(saved.lse),
            bias,
        )
        spans.scatter(part_q, grad_q)
        index = source.tokens_SN.flatten()
        grad_kv[0].index_add_(0, index, part_k.transpose(1, 2).flatten(0, 1))
        grad_kv[1].index_add_(0, index, part_v.transpose(1, 2).flatten(0, 1))


def window_groups(window: TrainWindow, device: torch.device) -> list[AttendsBack]:
    """Attention groups of one training window."""
    tokens = window.pack.tokens
    extents = tokens.extents(window.start, window.stop)
    starts = tokens.key_starts(window.start, window.stop)
    groups: list[AttendsBack] = []
    for members in split_by_size(extents):
        picked = [extents[i] for i in members]
        placed = [Extent(window.row + e.row, e.num_queries, e.start) for e in picked]
        index = key_index([starts[i] for i in members], picked, device)
        groups.append(
            AttentionGroup(SpanGroup.of(placed, device), PackKeys(window.pack.layers, index))
        )
    return groups


def key_index(starts: list[int], extents: list[Extent], device: torch.device) -> Tensor:
    """(S, N) index of each span's keys; padding repeats the span's first key."""
    counts = torch.tensor([e.num_keys for e in extents], device=device)
    first = torch.tensor(starts, device=device)
    steps = torch.arange(int(counts.max()), device=device)
    return first[:, None] + torch.where(steps < counts[:, None], steps, 0)


def paged_groups(
    extents: list[Extent], tables: list[list[int]], cache: KVCache, device: torch.device
) -> list[Attends]:
    """Attention groups of inference spans, given each span's block table."""
    groups: list[Attends] = []
    fresh = [e for e in extents if e.start == 0]
    for members in split_by_size(fresh):
        picked = [fresh[i] for i in members]
        index = key_index([e.row for e in picked], picked, device)
        groups.append(AttentionGroup(SpanGroup.of(picked, device), RowKeys(index)))
    cached = [i for i, e in enumerate(extents) if e.start > 0]
    for members in split_by_size([extents[i] for i in cached]):
        picked = [extents[cached[i]] for i in members]
        padded = pad_tables([tables[cached[i]] for i in members], picked, cache.block_size)
        source = PagedKeys(cache, padded.to(device))
        groups.append(AttentionGroup(SpanGroup.of(picked, device), source))
    return groups


def pad_tables(tables: list[list[int]], extents: list[Extent], block_size: int) -> Tensor:
    """(S, B) block ids, cut to the blocks that hold keys and padded with the null block."""
    used = [
        table[: -(-extent.num_keys // block_size)]
        for table, extent in zip(tables, extents, strict=True)
    ]
    padded = torch.zeros(len(used), max(map(len, used)), dtype=torch.int64)
    for i, table in enumerate(used):
        padded[i, : len(table)] = torch.tensor(table)
    return padded
