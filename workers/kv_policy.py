"""Which K/V of a sequence stay: per layer and KV head, from what was seen of its attention.

A policy scores slots, shares the budget out among layers and KV heads, and keeps the best of each
head. Sinks (the first tokens) and the window (the last ones) always stay. Keys hold their rotary
position already, so slots may move. All query heads of one KV head share what it keeps.

It compresses a prompt when that is computed. With a decode interval it compresses again and again
as the answer grows: what was kept before and the tokens since are then scored alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, WithJsonSchema, model_validator

from scheduler.domain.kv_cadence import KvCadence
from scheduler.domain.registry import PluginConfig, Registry
from workers.kv_observation import LayerObservation

Tokens = Annotated[int, Field(ge=1, strict=True)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Interval = Annotated[
    int | None,
    Field(ge=16, le=2**20, strict=True),
    WithJsonSchema({"type": ["integer", "null"], "minimum": 16, "maximum": 2**20}),
]


@dataclass(frozen=True)
class KeptHead:
    """What one KV head keeps: S slots.

    Attributes:
        slots: which they were among those that it held, ascending [S].
        positions: of the tokens that they stand for [S].
        keys, values: [S, head_dim].
        log_count: what attention adds to the logit of each slot [S]; 0 where one token fills it.
        column_sums: attention that they have got, as far as it is counted [S].
    """

    slots: torch.Tensor
    positions: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    log_count: torch.Tensor
    column_sums: torch.Tensor


@dataclass(frozen=True)
class Ranking:
    """The N slots of a layer as each KV head values them.

    Attributes:
        order: slots, the most worthy first; those that always stay lead [num_kv_heads, N].
        scores: the policy's score of each slot [num_kv_heads, N].
    """

    order: torch.Tensor
    scores: torch.Tensor


class KvPolicy(ABC):
    """One policy with one configuration."""

    class Config(PluginConfig):
        """Options of every policy."""

        budget: Tokens | Ratio = Field(
            description="Tokens that a KV head keeps on average, or their share of those computed."
        )
        window: int = Field(32, ge=1, le=1024, description="Last tokens, which always stay.")
        num_sinks: int = Field(4, ge=0, le=64, description="First tokens, which always stay.")
        decode_interval: Interval = Field(
            None,
            description="Tokens of the answer after which what is above the budget is dropped "
            "again, each time; null: only the prompt is compressed.",
        )

        @model_validator(mode="after")
        def _fits_what_always_stays(self) -> KvPolicy.Config:
            if isinstance(self.budget, int) and self.budget < self.window + self.num_sinks:
                raise ValueError("budget must hold the window and the sinks")
            if self.decode_interval is not None and self.decode_interval < self.window:
                raise ValueError("decode_interval must hold the window")
            return self

    def __init__(self, config: Any) -> None:
        self.config = config

    def query_stride(self, num_tokens: int) -> int | None:
        """Column sums of so many tokens count one of so many queries; None: it reads none."""
        del num_tokens
        return None

    def num_watched(self, num_tokens: int) -> int:
        """Last tokens of so many, up to a compression, whose queries it has to see."""
        window: int = self.config.window
        return min(num_tokens, window)

    def keeps_all(self, num_tokens: int) -> bool:
        """Whether so many tokens fit the budget, and so stay as they are."""
        return self._num_always(num_tokens) + self._num_free(num_tokens) == num_tokens

    def cadence(self, num_prompt_tokens: int, num_tokens: int) -> KvCadence | None:
        """When K/V of a sequence are compressed that computes up to `num_tokens`; None: never."""
        interval = self.config.decode_interval
        ends = range(num_prompt_tokens, num_tokens, interval or num_tokens + 1)
        first = next((end for end in ends if not self.keeps_all(end)), None)
        if first is None:
            return None
        watched = 0 if interval is None else self.num_watched(interval)
        return KvCadence(first, self.num_watched(first), interval, watched)

    @abstractmethod
    def score(self, seen: LayerObservation) -> torch.Tensor:
        """How much each slot matters to each KV head [num_kv_heads, N]."""

    def compress(self, layers: Sequence[LayerObservation]) -> list[list[KeptHead]]:
        """What each layer's KV heads keep when the last token before a compression has run.

        Each layer is read from the cache when it is asked for, and here only once.
        """
        return [
            self._compress_layer(seen, self.score(seen), self._num_free(seen.num_tokens))
            for seen in layers
        ]

    def head_budgets(self, scores: torch.Tensor, budget: int) -> list[int]:
        """Slots that each KV head keeps of those scored [num_kv_heads, n]; -inf: it has none."""
        return [budget] * len(scores)

    def keep(self, seen: LayerObservation, ranked: Ranking, counts: list[int]) -> list[KeptHead]:
        """Keep each head's first `counts` slots, and decide what becomes of the others."""
        return [
            self.keep_head(seen, head, ranked.order[head, :count].sort().values)
            for head, count in enumerate(counts)
        ]

    def keep_head(self, seen: LayerObservation, head: int, slots: torch.Tensor) -> KeptHead:
        """Keep `slots` of one head, and drop the others."""
        counts = seen.log_counts
        return KeptHead(
            slots,
            seen.positions[head, slots],
            seen.keys[head, slots],
            seen.values[head, slots],
            torch.zeros(len(slots)) if counts is None else counts[head, slots],
            seen.column_sums[head, slots],
        )

    # ---- inside --------------------------------------------------------------------------

    def _num_always(self, num_tokens: int) -> int:
        always: int = self.config.num_sinks + self.config.window
        return min(num_tokens, always)

    def _num_free(self, num_tokens: int) -> int:
        budget = self.config.budget
        total = budget if isinstance(budget, int) else int(budget * num_tokens)
        return max(0, min(num_tokens, total) - self._num_always(num_tokens))

    def _middle(self, seen: LayerObservation, scores: torch.Tensor) -> torch.Tensor:
        """The scores of the slots that may go; a head that has fewer begins with -inf."""
        num_sinks, num_slots = self.config.num_sinks, seen.num_slots
        start = min(num_slots, num_sinks)
        middle = scores.masked_fill(seen.positions < num_sinks, -torch.inf)
        return middle[:, start : max(start, num_slots - self.config.window)]

    def _compress_layer(
        self, seen: LayerObservation, scores: torch.Tensor, budget: int
    ) -> list[KeptHead]:
        counts = self.head_budgets(self._middle(seen, scores), budget)
        worth = scores.masked_fill(seen.positions < self.config.num_sinks, torch.inf)
        worth = worth.masked_fill_(seen.positions < 0, -torch.inf)
        worth[:, -self.config.window :] = torch.inf
        order = worth.argsort(dim=1, descending=True, stable=True)
        always = self._num_always(seen.num_tokens)
        return self.keep(seen, Ranking(order, scores), [always + count for count in counts])


class LayeredPolicy(KvPolicy):
    """A policy that shares the budget out among layers: all are scored before any is compressed."""

    def compress(self, layers: Sequence[LayerObservation]) -> list[list[KeptHead]]:
        """See KvPolicy; each layer is read twice."""
        scores, middles, num_free = [], [], []
        for seen in layers:
            scores.append(self.score(seen))
            middles.append(self._middle(seen, scores[-1]))
            num_free.append(self._num_free(seen.num_tokens))
        budgets = self.layer_budgets(middles, num_free)
        return [
            self._compress_layer(seen, score, budget)
            for seen, score, budget in zip(layers, scores, budgets, strict=True)
        ]

    @abstractmethod
    def layer_budgets(self, scores: list[torch.Tensor], num_free: list[int]) -> list[int]:
        """Tokens beside sinks and window that a head of each layer keeps on average.

        Args:
            scores: of the slots that may go, by layer [num_kv_heads, n].
            num_free: what each layer would keep if all were alike.
        """


KV_POLICIES: Registry[KvPolicy] = Registry("KV policy")
