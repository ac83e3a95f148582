"""LiNeS: the weighted sum of updates, scaled by depth from alpha to alpha + beta.

Shallow layers hold what all tasks share and are disturbed most by a sum; deep layers hold the task.
With one adapter it is an edit of that adapter. Only B is scaled.

Source: Wang et al. 2024, arXiv:2410.17146.
"""

from __future__ import annotations

import re

from pydantic import Field

from workers.lora_factors import Factors, Sites, concatenated, norm
from workers.merge import MERGES, Merge

LAYER = re.compile(r"\.layers\.(\d+)\.")


@MERGES.register("lines")
class Lines(Merge):
    """Exact at the sum of the ranks, as `cat`."""

    class Config(Merge.Config):
        """Options of LiNeS."""

        alpha: float | None = Field(
            None,
            ge=0,
            le=10,
            description="Factor at the first layer; left out, the length of the plain sum of "
            "updates over that of the weighted one, by the number of adapters.",
        )
        beta: float | None = Field(
            None, ge=-10, le=10, description="Added up to the last layer; left out, 1 - alpha."
        )

    config: Config

    def combine(self, adapters: list[Sites], weights: list[float]) -> Sites:
        """See Merge."""
        merged = _sums(adapters, weights)
        alpha = self.config.alpha
        if alpha is None:
            plain = norm(_sums(adapters, [1.0] * len(adapters)))
            alpha = plain / (len(adapters) * norm(merged)) if norm(merged) else 1.0
        beta = max(1 - alpha, 0.0) if self.config.beta is None else self.config.beta
        last = max(map(_layer, merged))
        return {
            site: Factors(f.a_RI, f.b_OR * (alpha + beta * _layer(site) / max(last, 1)))
            for site, f in merged.items()
        }


def _sums(adapters: list[Sites], weights: list[float]) -> Sites:
    sums: Sites = {}
    for site in sorted(set().union(*adapters)):
        here = [(a[site], w) for a, w in zip(adapters, weights, strict=True) if site in a]
        sums[site] = concatenated([f for f, _ in here], [w for _, w in here])
    return sums


def _layer(site: str) -> int:
    found = LAYER.search(site)
    assert found is not None
    return int(found[1])
