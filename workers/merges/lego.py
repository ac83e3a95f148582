"""LoRA-LEGO: cluster the rank-one units of all adapters; the centroids are the merged adapter.

A unit is a row of A with its column of B, weight and scale folded in. Each is balanced first, so
that both halves have one length: (c a, b / c) is the same unit, and should not cluster elsewhere.
A centroid is shorter than its members; it is stretched to their mean length. Last, k centroids for
n units are scaled by sqrt(n / k). With k = n the result is `cat`.

Source: Zhao et al. 2024, "Merging LoRAs like Playing LEGO", arXiv:2409.16167; from its abstract and
a summary: where the two scale factors sit is our reading.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from workers.lora_factors import Factors
from workers.merge import MERGES, SiteMerge

MAX_ROUNDS = 100  # k-means on some hundred units settles in about ten


@MERGES.register("lego")
class Lego(SiteMerge):
    """Adapters of any ranks; the order in which they are given does not matter."""

    class Config(SiteMerge.Config):
        """Options of LoRA-LEGO."""

        rank: int | None = Field(
            None, ge=1, le=256, description="Number of clusters; left out, the largest rank given."
        )

    config: Config

    def combine_site(self, site: str, factors: list[Factors], weights: list[float]) -> Factors:
        """See SiteMerge."""
        del site
        width = factors[0].a_RI.shape[1]
        units = torch.cat([_units(f, w) for f, w in zip(factors, weights, strict=True)])
        rank = self.config.rank or max(f.rank for f in factors)
        if rank < len(units):
            units = (len(units) / rank) ** 0.25 * _centroids(units, rank)  # once in each half
        return Factors(units[:, :width].float(), units[:, width:].T.float())


def _units(factors: Factors, weight: float) -> Tensor:
    """(R, I + O) float64: rows of A beside columns of B, balanced."""
    a, b = factors.a_RI.double(), (weight * factors.scale * factors.b_OR).double().T
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    even = (length_a * length_b).sqrt()
    tiny = torch.finfo(torch.float64).tiny
    return torch.cat((a * (even / (length_a + tiny)), b * (even / (length_b + tiny))), dim=1)


def _centroids(units: Tensor, count: int) -> Tensor:
    """K-means from the units farthest apart; each centroid as long as its members on average."""
    owner = _nearest(units, units[_far_apart(units, count)])
    for _ in range(MAX_ROUNDS):
        moved = _nearest(units, _means(units, owner, count))
        if torch.equal(moved, owner):
            break
        owner = moved
    means = _means(units, owner, count)
    lengths = _means(units.norm(dim=1, keepdim=True), owner, count)
    centroids: Tensor = means * (lengths / means.norm(dim=1, keepdim=True).clamp_min(1e-300))
    return centroids


def _far_apart(units: Tensor, count: int) -> list[int]:
    """The longest unit, then each time the one farthest from all chosen: no draw, no order."""
    chosen = [int(units.norm(dim=1).argmax())]
    gap = (units - units[chosen[0]]).norm(dim=1)
    while len(chosen) < count:
        chosen.append(int(gap.argmax()))
        gap = torch.minimum(gap, (units - units[chosen[-1]]).norm(dim=1))
    return chosen


def _nearest(units: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(units, centres).argmin(dim=1)


def _means(rows: Tensor, owner: Tensor, count: int) -> Tensor:
    """Mean row of each cluster; zero for an empty one."""
    sums = torch.zeros(count, rows.shape[1], dtype=rows.dtype).index_add_(0, owner, rows)
    means: Tensor = sums / owner.bincount(minlength=count).clamp_min(1)[:, None]
    return means
