"""Which K/V of a prompt stay: per layer and KV head, from what was seen of its attention.

A policy scores tokens, shares the budget out among layers and KV heads, and keeps the best of each
head. Sinks (the first tokens) and the window (the last ones) always stay. Keys hold their rotary
position already, so slots may move. All query heads of one KV head share what it keeps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from scheduler.domain.registry import PluginConfig, Registry
from workers.kv_observation import LayerObservation

Tokens = Annotated[int, Field(ge=1, strict=True)]
Ratio = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class KeptHead:
    """What one KV head keeps: S slots.

    Attributes:
        tokens: their indices in the prompt, ascending [S].
        keys, values: [S, head_dim].
        log_count: what attention adds to the logit of each slot [S]; 0 where one token fills it.
    """

    tokens: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    log_count: torch.Tensor


@dataclass(frozen=True)
class Ranking:
    """The T tokens of a prompt as each KV head values them.

    Attributes:
        order: tokens, the most worthy first; those that always stay lead [num_kv_heads, T].
        scores: the policy's score of each token [num_kv_heads, T].
    """

    order: torch.Tensor
    scores: torch.Tensor


class KvPolicy(ABC):
    """One policy with one configuration."""

    class Config(PluginConfig):
        """Options of every policy."""

        budget: Tokens | Ratio = Field(
            description="Tokens that a KV head keeps on average, or their share of the prompt."
        )
        window: int = Field(32, ge=1, le=1024, description="Last tokens, which always stay.")
        num_sinks: int = Field(4, ge=0, le=64, description="First tokens, which always stay.")

        @model_validator(mode="after")
        def _fits_what_always_stays(self) -> KvPolicy.Config:
            if isinstance(self.budget, int) and self.budget < self.window + self.num_sinks:
                raise ValueError("budget must hold the window and the sinks")
            return self

    def __init__(self, config: Any) -> None:
        self.config = config

    def query_stride(self, num_tokens: int) -> int | None:  # noqa: ARG002
        """Column sums of a prompt count one of so many queries; None: the policy reads none."""
        return None

    def num_watched(self, num_tokens: int) -> int:
        """Last tokens of a prompt whose queries it has to see; 0 where all are kept anyhow."""
        return 0 if self.keeps_all(num_tokens) else min(num_tokens, self.config.window)

    def keeps_all(self, num_tokens: int) -> bool:
        """Whether a prompt of this length fits the budget, and so stays as it is."""
        return self._num_always(num_tokens) + self._num_free(num_tokens) == num_tokens

    @abstractmethod
    def score(self, seen: LayerObservation) -> torch.Tensor:
        """How much each token matters to each KV head [num_kv_heads, T]."""

    def compress(self, layers: Sequence[LayerObservation]) -> list[list[KeptHead]]:
        """What each layer's KV heads keep when the last chunk of a prompt has run."""
        scores = [self.score(seen) for seen in layers]
        num_free = [self._num_free(score.shape[1]) for score in scores]
        budgets = self.layer_budgets([self._middle(score) for score in scores], num_free)
        return [
            self._compress_layer(seen, score, budget)
            for seen, score, budget in zip(layers, scores, budgets, strict=True)
        ]

    def layer_budgets(self, scores: list[torch.Tensor], num_free: list[int]) -> list[int]:  # noqa: ARG002
        """Tokens beside sinks and window that a head of each layer keeps on average."""
        return num_free

    def head_budgets(self, scores: torch.Tensor, budget: int) -> list[int]:
        """Tokens that each KV head keeps of those scored [num_kv_heads, n]."""
        return [budget] * len(scores)

    def keep(self, seen: LayerObservation, ranked: Ranking, counts: list[int]) -> list[KeptHead]:
        """Keep each head's first `counts` tokens, and decide what becomes of the others."""
        return [
            self.keep_head(seen, head, ranked.order[head, :count].sort().values)
            for head, count in enumerate(counts)
        ]

    def keep_head(self, seen: LayerObservation, head: int, tokens: torch.Tensor) -> KeptHead:
        """Keep `tokens` of one head, and drop the others."""
        keys, values = seen.keys[head, tokens], seen.values[head, tokens]
        return KeptHead(tokens, keys, values, torch.zeros(len(tokens)))

    # ---- inside --------------------------------------------------------------------------

    def _num_always(self, num_tokens: int) -> int:
        always: int = self.config.num_sinks + self.config.window
        return min(num_tokens, always)

    def _num_free(self, num_tokens: int) -> int:
        budget = self.config.budget
        total = budget if isinstance(budget, int) else int(budget * num_tokens)
        return max(0, min(num_tokens, total) - self._num_always(num_tokens))

    def _middle(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores of the tokens that may go."""
        num_tokens = scores.shape[1]
        start = min(num_tokens, self.config.num_sinks)
        return scores[:, start : max(start, num_tokens - self.config.window)]

    def _compress_layer(
        self, seen: LayerObservation, scores: torch.Tensor, budget: int
    ) -> list[KeptHead]:
        middle = self._middle(scores)
        counts = self.head_budgets(middle, budget)
        worth = scores.clone()
        worth[:, : self.config.num_sinks] = torch.inf
        worth[:, -self.config.window :] = torch.inf
        order = worth.argsort(dim=1, descending=True, stable=True)
        always = self._num_always(seen.num_tokens)
        return self.keep(seen, Ranking(order, scores), [always + count for count in counts])


KV_POLICIES: Registry[KvPolicy] = Registry("KV policy")
