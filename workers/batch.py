"""One packed forward as tensors: rows of training windows first, then rows of inference spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from workers.activations import LayerActivations
from workers.adapter_rows import AdapterRows
from workers.attention import Extent, Sinks, SpanGroup, attend, split_by_size
from workers.decode_attention import DecodeGroup
from workers.kv_cache import KVCache
from workers.train_pack import TrainPack


class KeySource(Protocol):
    """Where the keys of a group's spans come from."""

    def keys_values(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """K and V, (S, K, N, D) each, given those of the batch's own rows."""


class Attends(Protocol):
    """Spans of a batch that attend together."""

    def run(
        self, layer: int, window: int | None, qkv: tuple[Tensor, Tensor, Tensor], sinks: Sinks
    ) -> None:
        """Attend for one layer; write output rows, and log-sum-exps where wanted."""


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


@dataclass(slots=True)
class TrainWindow:
    """Rows [row, row + stop - start) of the batch are tokens [start, stop) of a pack.

    Attributes:
        recorders: per layer, the buffers that take the window's activations.
        record_from: token that the recorders' index 0 stands for.
    """

    pack: TrainPack
    start: int
    stop: int
    row: int
    recorders: list[LayerActivations]
    record_from: int = 0

    @property
    def rows(self) -> slice:
        """The window's rows in the batch."""
        return slice(self.row, self.row + self.stop - self.start)


@dataclass(slots=True)
class CacheRows:
    """Inference rows of the batch, and where their K and V go."""

    rows: slice
    blocks_T: Tensor
    offsets_T: Tensor


@dataclass(slots=True)
class ForwardBatch:
    """Everything a forward pass needs beside the weights.

    Attributes:
        cos, sin: (T, 1, head_dim / 2) of the rows' positions.
    """

    token_ids: Tensor
    cos: Tensor
    sin: Tensor
    adapters: AdapterRows
    windows: list[TrainWindow]
    groups: Sequence[Attends]
    cache: KVCache | None = None
    cache_rows: CacheRows | None = None
    logit_rows: Tensor | None = field(default=None)

    @property
    def num_tokens(self) -> int:
        """Rows of the batch."""
        return self.token_ids.shape[0]

    def record(self, layer: int, name: str, rows: Tensor) -> None:
        """Offer activations of all rows to the training windows, which keep what they need."""
        for window in self.windows:
            window.recorders[layer].put(name, window.start - window.record_from, rows[window.rows])

    def store_keys(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """Keep K and V of all rows: training rows in their pack, inference rows in pages."""
        for window in self.windows:
            window.pack.layers[layer].put("k", window.start, k_TKD[window.rows])
            window.pack.layers[layer].put("v", window.start, v_TKD[window.rows])
        if self.cache is not None and self.cache_rows is not None:
            place = self.cache_rows
            self.cache.write(
                layer, place.blocks_T, place.offsets_T, k_TKD[place.rows], v_TKD[place.rows]
            )


def window_groups(window: TrainWindow, device: torch.device) -> list[AttentionGroup]:
    """Attention groups of one training window."""
    tokens = window.pack.tokens
    extents = tokens.extents(window.start, window.stop)
    starts = tokens.key_starts(window.start, window.stop)
    groups = []
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
    single = [i for i in cached if extents[i].num_queries == 1]
    if single:
        picked = [extents[i] for i in single]
        decode = DecodeGroup.try_of(picked, [tables[i] for i in single], cache, device)
        if decode is not None:
            groups.append(decode)
            cached = [i for i in cached if extents[i].num_queries > 1]
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
