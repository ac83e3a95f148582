"""What a KV policy looks at of one sequence, gathered chunk by chunk as its prompt is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

from workers.kv_cache import KVCache
from workers.kv_observation import AttentionSums, LayerObservation
from workers.kv_policy import KvPolicy


class PromptWatch:
    """One sequence under one policy, from the first token that is computed to its prompt's last.

    Attributes:
        stop: the token that it sees next.
    """

    def __init__(self, policy: KvPolicy, num_layers: int, num_tokens: int, start: int) -> None:
        self.policy = policy
        self.stop = start
        window, stride = policy.config.window, policy.query_stride(num_tokens)
        self.layers = [AttentionSums(window, stride) for _ in range(num_layers)]

    def forget(self) -> None:
        """Let go of what was seen: the prompt has been compressed."""
        self.layers = []


@dataclass(slots=True)
class WatchedRows:
    """Rows of a batch that a watch sees, and where the keys up to their last lie.

    Attributes:
        tables_1B: the sequence's block table.
    """

    watch: PromptWatch
    rows: slice
    tables_1B: Tensor
    num_keys: int

    def see(self, layer: int, q_THD: Tensor, cache: KVCache) -> None:
        """Count one layer's queries; q_THD are those of the whole batch, rotated."""
        sums = self.watch.layers[layer]
        queries = q_THD[self.rows].transpose(0, 1)
        if sums.query_stride is None:
            sums.keep(queries)
            return
        keys = cache.gather_keys(layer, self.tables_1B)
        with q_THD.device:
            sums.add(queries, keys[0, :, : self.num_keys])


class WatchedPrompt(Sequence[LayerObservation]):
    """The layers of a prompt that has been computed, each read from the cache when asked for."""

    def __init__(
        self, watch: PromptWatch, cache: KVCache, tables_1B: Tensor, num_tokens: int
    ) -> None:
        self._watch = watch
        self._cache = cache
        self._tables = tables_1B
        self._num_tokens = num_tokens

    def __len__(self) -> int:
        return len(self._watch.layers)

    @overload
    def __getitem__(self, layer: int) -> LayerObservation: ...

    @overload
    def __getitem__(self, layer: slice) -> list[LayerObservation]: ...

    def __getitem__(self, layer: int | slice) -> LayerObservation | list[LayerObservation]:
        if isinstance(layer, slice):
            return [self[i] for i in range(*layer.indices(len(self)))]
        sums = self._watch.layers[layer]
        keys, values = self._cache.gather(layer, self._tables)
        return sums.observe(keys[0, :, : self._num_tokens], values[0, :, : self._num_tokens])
