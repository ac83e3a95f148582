"""The specification of compressing a growing sequence: one slot, one query, one product at a time.

A head is a list of slots. A token adds one; at a cadence's lengths each policy's formula scores
the slots, the best stay, and merging policies join others to them. How a budget is shared out among
layers and heads has tests of its own and is asked of the policy.

Shape suffixes: L layers, H query heads, K KV heads, T tokens, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scheduler.domain.kv_cadence import KvCadence
from workers.kernels import reference
from workers.kv_policy import KvPolicy, LayeredPolicy


@dataclass
class Slot:
    """Position, key and value of a token; how many it stands for, and the attention they got."""

    position: int
    key: Tensor
    value: Tensor
    count: float = 1.0
    total: float = 0.0


@dataclass(frozen=True)
class Tokens:
    """What a model would have computed: queries (L, H, T, D), keys and values (L, K, T, D)."""

    queries: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def random(cls, seed: int, sizes: tuple[int, int, int, int, int], dtype: torch.dtype) -> Tokens:
        """Independent normal numbers for L, H, K, T and D of `sizes`."""
        layers, heads, kv_heads, tokens, dim = sizes
        generator = torch.Generator().manual_seed(seed)
        queries = torch.randn(layers, heads, tokens, dim, generator=generator)
        pair = torch.randn(2, layers, kv_heads, tokens, dim, generator=generator)
        return cls(queries.to(dtype), *pair.to(dtype))


class SlowCache:
    """What every KV head holds of one sequence, layer by layer."""

    def __init__(self, name: str, policy: KvPolicy, cadence: KvCadence | None, tokens: Tokens):
        self.policy = policy
        self.config: Any = policy.config
        self.cadence = cadence
        self.tokens = tokens
        self.score = SCORES[name]
        self.keep = KEEPS.get(name, keep_best)
        num_layers, num_kv_heads = tokens.keys.shape[:2]
        self.heads: list[list[list[Slot]]] = [
            [[] for _ in range(num_kv_heads)] for _ in range(num_layers)
        ]
        self.num_tokens = self.compressed_at = 0

    def run(self, num_tokens: int) -> None:
        """Take tokens in, one at a time, up to `num_tokens`."""
        for token in range(self.num_tokens, num_tokens):
            for layer, heads in enumerate(self.heads):
                for head, slots in enumerate(heads):
                    key, value = (
                        rows[layer, head, token].double()
                        for rows in (self.tokens.keys, self.tokens.values)
                    )
                    slots.append(Slot(token, key, value))
            self.num_tokens += 1
            if self.cadence is not None and self.cadence.is_due(self.num_tokens):
                self.compress()

    def compress(self) -> None:
        """Drop, or merge, what is above the budget."""
        self._add_sums()
        scores = [[self.score(self, i, j) for j in range(len(h))] for i, h in enumerate(self.heads)]
        middles = [self._middle(layer, scores[layer]) for layer in range(len(self.heads))]
        total = self.config.budget
        total = total if isinstance(total, int) else int(total * self.num_tokens)
        always = self.config.num_sinks + self.config.window
        free = max(0, min(total, self.num_tokens) - always)
        budgets = [free] * len(middles)
        if isinstance(self.policy, LayeredPolicy):
            budgets = self.policy.layer_budgets(middles, budgets)
        for layer, (middle, budget) in enumerate(zip(middles, budgets, strict=True)):
            counts = self.policy.head_budgets(middle, budget)
            for head, count in enumerate(counts):
                slots, own = self.heads[layer][head], scores[layer][head]
                order = self._order(slots, own)
                self.heads[layer][head] = self.keep(self, slots, own, order, always + count)
        self.compressed_at = self.num_tokens

    def window_sums(self, layer: int, head: int) -> list[float]:
        """Attention of a KV head's last queries to each slot, mean over its query heads."""
        first = self.num_tokens - self.config.window
        return self._sums(layer, head, range(first, self.num_tokens))

    def _sums(self, layer: int, head: int, queries: range) -> list[float]:
        slots = self.heads[layer][head]
        group = self.tokens.queries.shape[1] // len(self.heads[layer])
        sums = [0.0] * len(slots)
        for query_head in range(head * group, (head + 1) * group):
            for token in queries:
                row = attention_row(self.tokens.queries[layer, query_head, token], slots, token)
                for place, weight in enumerate(row):
                    sums[place] += weight / group
        return sums

    def _add_sums(self) -> None:
        """Count one of so many queries since the last compression, each for as many."""
        stride = self.policy.query_stride(self.num_tokens - self.compressed_at)
        if stride is None:
            return
        first = self.compressed_at + -self.compressed_at % stride
        for layer, heads in enumerate(self.heads):
            for head, slots in enumerate(heads):
                sums = self._sums(layer, head, range(first, self.num_tokens, stride))
                for slot, total in zip(slots, sums, strict=True):
                    slot.total += stride * total

    def _middle(self, layer: int, scores: list[list[float]]) -> Tensor:
        """Scores of what may go, each head's as the last of its line."""
        num_sinks = self.config.num_sinks
        lines = [
            [score for slot, score in zip(slots, own, strict=True) if slot.position >= num_sinks]
            for slots, own in zip(self.heads[layer], scores, strict=True)
        ]
        most = max(map(len, lines))
        padded = [[-math.inf] * (most - len(line)) + line for line in lines]
        return torch.tensor(padded)[:, : most - self.config.window]

    def _order(self, slots: list[Slot], scores: list[float]) -> list[int]:
        """Places of the slots, those that always stay first, then by score."""

        def rank(place: int) -> tuple[bool, float]:
            is_sink = slots[place].position < self.config.num_sinks
            stays = is_sink or place >= len(slots) - self.config.window
            return not stays, 0 if stays else -scores[place]

        return sorted(range(len(slots)), key=rank)


def attention_row(query: Tensor, slots: list[Slot], token: int) -> list[float]:
    """Attention of the query of `token`; 0 for slots of later ones."""
    logits = torch.stack([slot.key for slot in slots]) @ query.double() / math.sqrt(len(query))
    weights = [
        slot.count * math.exp(logit) if slot.position <= token else 0.0
        for slot, logit in zip(slots, logits.tolist(), strict=True)
    ]
    return [weight / sum(weights) for weight in weights]


def pooled(scores: list[float], pooling: str, size: int) -> list[float]:
    """Mean (missing neighbours are zero) or maximum of each and its neighbours."""
    near = [scores[max(0, i - size // 2) : i + size // 2 + 1] for i in range(len(scores))]
    return [max(line) if pooling == "max" else sum(line) / size for line in near]


# ---- scores ------------------------------------------------------------------------------------


def snap_score(cache: SlowCache, layer: int, head: int) -> list[float]:
    window = cache.config.window
    sums = cache.window_sums(layer, head)[:-window]
    return pooled(sums, cache.config.pooling, cache.config.kernel_size) + [0.0] * window


def sum_score(cache: SlowCache, layer: int, head: int) -> list[float]:
    return [slot.total for slot in cache.heads[layer][head]]


def streaming_score(cache: SlowCache, layer: int, head: int) -> list[float]:
    return [float(slot.position) for slot in cache.heads[layer][head]]


def keydiff_score(cache: SlowCache, layer: int, head: int) -> list[float]:
    directions = [slot.key / slot.key.norm() for slot in cache.heads[layer][head]]
    mean = torch.stack(directions).mean(0)
    return [-float(each @ mean / mean.norm()) for each in directions]


def ems_score(cache: SlowCache, layer: int, head: int) -> list[float]:
    local = cache.window_sums(layer, head)
    overall = [s.total / (cache.num_tokens - s.position) for s in cache.heads[layer][head]]
    scale = sum(local) / sum(overall)
    larger = [max(g * scale, near) for g, near in zip(overall, local, strict=True)]
    return pooled(larger, "max", 5)


SCORES: dict[str, Callable[[SlowCache, int, int], list[float]]] = {
    "adakv": snap_score,
    "elastic": sum_score,
    "ems": ems_score,
    "h2o": sum_score,
    "keydiff": keydiff_score,
    "prefixkv": sum_score,
    "pyramid": snap_score,
    "snapkv": snap_score,
    "streaming": streaming_score,
}


# ---- what becomes of the others ----------------------------------------------------------------


def keep_best(
    _: SlowCache, slots: list[Slot], __: list[float], order: list[int], count: int
) -> list[Slot]:
    return [slots[place] for place in sorted(order[:count])]


def keep_means(
    _: SlowCache, slots: list[Slot], __: list[float], order: list[int], count: int
) -> list[Slot]:
    """Elastic Cache: every slot joins the kept one of the nearest position."""
    kept = sorted(order[:count])
    joining: dict[int, list[Slot]] = {place: [] for place in kept}
    for slot in slots:
        nearest = min(kept, key=lambda place: abs(slots[place].position - slot.position))
        joining[nearest].append(slot)
    means = []
    for place, members in joining.items():
        key = torch.stack([slot.key for slot in members]).mean(0)
        value = torch.stack([slot.value for slot in members]).mean(0)
        means.append(Slot(slots[place].position, key, value, 1.0, slots[place].total))
    return means


def keep_merged(
    cache: SlowCache, slots: list[Slot], scores: list[float], order: list[int], count: int
) -> list[Slot]:
    """EMS: the next best join the centre that they are most like, or nobody."""
    centres = sorted(order[:count])
    joining: dict[int, list[int]] = {place: [place] for place in centres}
    keys = torch.stack([slots[place].key for place in centres])
    values = torch.stack([slots[place].value for place in centres])
    for place in order[count : count + int(cache.config.merge_ratio * count)]:
        centre, likeness = reference.likest_centre(
            slots[place].key, slots[place].value, keys, values
        )
        if likeness >= cache.config.threshold and scores[place] > 0:
            joining[centres[centre]].append(place)
    return [_merged(slots, scores, members) for members in joining.values()]


def _merged(slots: list[Slot], scores: list[float], members: list[int]) -> Slot:
    """The mean of members by score, with the norm of the first one's key."""
    centre, held = slots[members[0]], [slots[place] for place in members]
    if len(members) == 1:
        return centre
    weights = torch.tensor([scores[place] for place in members]).double()
    turned = weights @ torch.stack([slot.key / slot.key.norm() for slot in held])
    value = weights @ torch.stack([slot.value for slot in held]) / weights.sum()
    return Slot(
        centre.position,
        centre.key.norm() * turned / turned.norm(),
        value,
        sum(slot.count for slot in held),
        sum(slot.total for slot in held),
    )


KEEPS: dict[str, Callable[[SlowCache, list[Slot], list[float], list[int], int], list[Slot]]] = {
    "elastic": keep_means,
    "ems": keep_merged,
}
