"""What a KV policy looks at of one sequence, gathered chunk by chunk until it compresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

from workers.device_copy import making_on
from workers.held_slots import HeldSlots
from workers.kv_observation import AttentionSums, LayerObservation
from workers.kv_policy import KvPolicy


class KvWatch:
    """One sequence under one policy, from the first query that is seen to the next compression.

    Attributes:
        stop: the token that it sees next.

    Args:
        policy: which compresses.
        num_layers: of the model.
        num_tokens: from the compression before, or the first token, to the next.
        start: the first token that is seen.
    """

    def __init__(self, policy: KvPolicy, num_layers: int, num_tokens: int, start: int) -> None:
        self.policy = policy
        self.stop = start
        window, stride = policy.config.window, policy.query_stride(num_tokens)
        self.layers = [AttentionSums(window, stride) for _ in range(num_layers)]

    def goes_on_at(self, token: int) -> bool:
        """Whether it has seen all that it should have before `token`."""
        return bool(self.layers) and self.stop == token

    def take(self, q_LHD: Tensor, token: int, held: HeldSlots) -> None:
        """Take in one token's queries of all layers, which are kept as they are."""
        for layer, sums in enumerate(self.layers):
            sums.take(q_LHD[layer, :, None], token)
            self.count_if_full(layer, held)

    def count_if_full(self, layer: int, held: HeldSlots) -> None:
        """Count the queries that wait, if they are many; `held` are the slots that they see."""
        if self.layers[layer].is_full:
            with making_on(held.device):
                self.layers[layer].count(held.read(layer))

    def forget(self) -> None:
        """Let go of what was seen: the K/V have been compressed."""
        self.layers = []


@dataclass(slots=True)
class WatchedRows:
    """Rows of a batch that a watch sees, of tokens from `start` on.

    Attributes:
        held: the slots up to the last row's, once a layer has stored them.
    """

    watch: KvWatch
    rows: slice
    start: int
    held: HeldSlots

    def see(self, layer: int, q_THD: Tensor) -> None:
        """See SeesQueries."""
        self.watch.layers[layer].see(q_THD[self.rows].transpose(0, 1), self.start)
        self.watch.count_if_full(layer, self.held)


class WatchedLayers(Sequence[LayerObservation]):
    """The layers of a watched sequence, each read from the cache when asked for."""

    def __init__(self, watch: KvWatch, held: HeldSlots) -> None:
        self._watch = watch
        self._held = held

    def __len__(self) -> int:
        return len(self._watch.layers)

    @overload
    def __getitem__(self, layer: int) -> LayerObservation: ...

    @overload
    def __getitem__(self, layer: slice) -> list[LayerObservation]: ...

    def __getitem__(self, layer: int | slice) -> LayerObservation | list[LayerObservation]:
        if isinstance(layer, slice):
            return [self[i] for i in range(*layer.indices(len(self)))]
        return self._watch.layers[layer].observe(self._held.read(layer))
