"""Merging adapters: several LoRAs and their weights -> one LoRA of the same base model.

Three levels, each method on the one that suits it: all sites at once (`Merge`), one site
(`SiteMerge`), or one stack of equal tensors (`TensorMerge`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from scheduler.domain.errors import InvalidInput
from scheduler.domain.registry import PluginConfig, Registry
from workers.adapter_file import LoadedAdapter
from workers.lora_factors import Factors, Sites, adapter_of, sites_of, truncated

Score = Callable[[LoadedAdapter], float]


@dataclass(frozen=True, slots=True)
class Composition:
    """A merged adapter, the weights that were found for it, and its score."""

    adapter: LoadedAdapter
    weights: tuple[float, ...]
    score: float


class Merge(ABC):
    """One way to merge, with one configuration.

    Attributes:
        shares_a: all adapters must have the same A factors.
        learns_weights: `learn` can find the weights.
    """

    class Config(PluginConfig):
        """Options of the merge."""

    shares_a: ClassVar[bool] = False
    learns_weights: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    def merge(self, adapters: Sequence[LoadedAdapter], weights: Sequence[float]) -> LoadedAdapter:
        """Merge adapters of one base model; the result has scale 1.

        Raises:
            InvalidInput: no adapters, other methods than LoRA, shapes or ranks that this merge
                cannot join, weights that are not finite or not one for each adapter.
        """
        if not adapters or len(adapters) != len(weights):
            raise InvalidInput("A merge needs adapters, and one weight for each.", param="weights")
        if not all(map(math.isfinite, weights)):
            raise InvalidInput("A weight is not a finite number.", param="weights")
        parts = [sites_of(adapter) for adapter in adapters]
        _check_shapes(parts)
        return adapter_of(self.combine(parts, list(weights)), adapters[0].method.model)

    def learn(self, adapters: Sequence[LoadedAdapter], score: Score) -> Composition:
        """Merge with the weights that give the best score (higher is better).

        Raises:
            InvalidInput: the adapters cannot be merged, or this merge learns no weights.
        """
        del adapters, score
        raise InvalidInput("This merge learns no weights.", param="method")

    @abstractmethod
    def combine(self, adapters: list[Sites], weights: list[float]) -> Sites:
        """Factors of the merged adapter at every site that any adapter has."""


class SiteMerge(Merge):
    """A merge that looks at one site at a time; adapters without the site have no say there."""

    def combine(self, adapters: list[Sites], weights: list[float]) -> Sites:
        """See Merge."""
        merged: Sites = {}
        for site in sorted(set().union(*adapters)):
            here = [(a[site], w) for a, w in zip(adapters, weights, strict=True) if site in a]
            merged[site] = self.combine_site(site, [f for f, _ in here], [w for _, w in here])
        return merged

    @abstractmethod
    def combine_site(self, site: str, factors: list[Factors], weights: list[float]) -> Factors:
        """Merged factors of one site."""


class TensorMerge(SiteMerge):
    """A merge of equal tensors, done to A and B apart, or to the dense updates, which SVD cuts."""

    class Config(SiteMerge.Config):
        """Options of every merge of tensors."""

        space: Literal["factors", "update"] = Field(
            "factors", description="What is merged: A and B apart, or B A, then cut by SVD."
        )
        rank: int | None = Field(
            None, ge=1, le=256, description="Rank after `update`; left out, the largest given."
        )

    config: Config

    def combine_site(self, site: str, factors: list[Factors], weights: list[float]) -> Factors:
        """See SiteMerge."""
        if self.config.space == "update":
            rank = self.config.rank or max(f.rank for f in factors)
            updates = [f.update() for f in factors]
            return truncated(self.combine_tensors(f"{site}:update", updates, weights), rank)
        for_a, for_b = divided(factors, weights)
        return Factors(
            self.combine_tensors(f"{site}:A", [f.a_RI for f in factors], for_a),
            self.combine_tensors(f"{site}:B", [f.b_OR for f in factors], for_b),
        )

    @abstractmethod
    def combine_tensors(self, place: str, tensors: list[Tensor], weights: list[float]) -> Tensor:
        """One tensor of several; `place` names them, for stateless randomness."""


MERGES: Registry[Merge] = Registry("merge")


def check_equal_ranks(factors: list[Factors]) -> None:
    """Refuse factors that cannot be added.

    Raises:
        InvalidInput: the ranks differ.
    """
    ranks = sorted({f.rank for f in factors})
    if len(ranks) > 1:
        raise InvalidInput(f"This merge needs one rank, not {ranks}; `cat` and `svd` take any.")


def divided(factors: list[Factors], weights: list[float]) -> tuple[list[float], list[float]]:
    """Weight times scale, divided between A and B: the root to each, the sign to A.

    Raises:
        InvalidInput: the ranks differ, so that factors cannot be added.
    """
    check_equal_ranks(factors)
    given = [w * f.scale for f, w in zip(factors, weights, strict=True)]
    roots = [math.sqrt(abs(w)) for w in given]
    return [math.copysign(root, w) for root, w in zip(roots, given, strict=True)], roots


def weighted_sum(tensors: list[Tensor], weights: list[float]) -> Tensor:
    """Sum of weight times tensor."""
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight)
    return total


def kept_by_magnitude(tensor: Tensor, density: float) -> Tensor:
    """The tensor with all but its `density` of largest entries zero."""
    kept = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
    result = torch.zeros_like(tensor).flatten()
    result[kept] = tensor.flatten()[kept]
    return result.view_as(tensor)


def elected_mean(
    tensors: list[Tensor], weights: list[float], method: Literal["total", "frequency"]
) -> Tensor:
    """Each entry's mean over the tensors whose sign there is the elected one.

    The election is before weighting: by the sum of the entries, or by the sum of their signs; zero
    elects plus. The divisor counts tensors, not weights.
    """
    stacked = torch.stack(tensors)
    votes = stacked if method == "total" else stacked.sign()
    elected = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == elected
    weighted = weighted_sum(list(stacked * agrees), weights)
    return weighted / agrees.sum(0).clamp_(min=1)


def _check_shapes(adapters: list[Sites]) -> None:
    """All adapters fit the same weights.

    Raises:
        InvalidInput: they do not.
    """
    seen: dict[str, tuple[int, int]] = {}
    for sites in adapters:
        for site, factors in sites.items():
            shape = (factors.b_OR.shape[0], factors.a_RI.shape[1])
            if seen.setdefault(site, shape) != shape:
                raise InvalidInput(f"The adapters are of different base models: see {site}.")
