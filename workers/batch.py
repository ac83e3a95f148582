"""One packed forward as tensors: rows of training windows first, then rows of inference spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from workers.activations import LayerActivations
from workers.adapter_rows import AdapterRows
from workers.attention import Attends
from workers.kernels.qkv_rows import PageRows
from workers.kv_cache import KVCache
from workers.train_pack import TrainPack


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


class SeesQueries(Protocol):
    """Whoever wants to see the queries of a batch."""

    def see(self, layer: int, q_THD: Tensor) -> None:
        """Take in one layer's queries, of all rows of the batch, rotated."""


class StoresHeads(Protocol):
    """Rows of compressed sequences, whose heads have places of their own."""

    def store(self, cache: KVCache, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """Keep those of a batch's K and V that are the rows' own."""


@dataclass(slots=True)
class HeadRows:
    """Rows of compressed sequences, and the slots of their heads: (L, T, K)."""

    rows: slice
    slots_LTK: Tensor

    def store(self, cache: KVCache, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """See StoresHeads."""
        cache.write_slots(self.slots_LTK[layer], k_TKD[self.rows], v_TKD[self.rows])


@dataclass(slots=True)
class ForwardBatch:
    """Everything a forward pass needs beside the weights.

    Attributes:
        cos, sin: (T, 1, head_dim / 2) of the rows' positions.
        watched: rows whose queries a KV policy wants to see.
        prepared: the batch as a kernel reads it, once one has.
    """

    token_ids: Tensor
    cos: Tensor
    sin: Tensor
    adapters: AdapterRows
    windows: list[TrainWindow]
    groups: Sequence[Attends]
    cache: KVCache | None = None
    cache_rows: CacheRows | None = None
    head_rows: StoresHeads | None = None
    watched: Sequence[SeesQueries] = ()
    prepared: Any = None

    @property
    def num_tokens(self) -> int:
        """Rows of the batch."""
        return self.token_ids.shape[0]

    def record(self, layer: int, name: str, rows: Tensor) -> None:
        """Offer activations of all rows to the training windows, which keep what they need."""
        for window in self.windows:
            window.recorders[layer].put(name, window.start - window.record_from, rows[window.rows])

    def pages(self, layer: int) -> PageRows | None:
        """The rows whose K and V go to a layer's pages as they are, if there are any."""
        if self.cache is None or self.cache_rows is None:
            return None
        place, cache = self.cache_rows, self.cache
        return PageRows(
            cache.keys[layer], cache.values[layer], place.rows, place.blocks_T, place.offsets_T
        )

    def store_keys(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """Keep K and V of the other rows: in packs, and in pages of compressed sequences."""
        for window in self.windows:
            window.pack.layers[layer].put("k", window.start, k_TKD[window.rows])
            window.pack.layers[layer].put("v", window.start, v_TKD[window.rows])
        if self.cache is not None and self.head_rows is not None:
            self.head_rows.store(self.cache, layer, k_TKD, v_TKD)

    def show_queries(self, layer: int, q_THD: Tensor) -> None:
        """Let KV policies see a layer's rotated queries; the keys are stored by now."""
        for rows in self.watched:
            rows.see(layer, q_THD)
