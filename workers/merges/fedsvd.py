"""FedSVD: clients trained B under one A; average B, then choose A anew by SVD of the product.

    B_mean A = U S V^T,   A <- V^T (orthonormal rows),   B <- U S

Nothing is lost: the product has the rank of A. Weights are shares (of examples, say) and are
divided by their sum.  Source: FedSVD, arXiv:2505.12805.
"""

from __future__ import annotations

import torch

from scheduler.domain.errors import InvalidInput
from workers.lora_factors import Factors, truncated_factors
from workers.merge import MERGES, SiteMerge, weighted_sum


@MERGES.register("fedsvd")
class FedSvd(SiteMerge):
    """One server round; the result is what clients start the next round from."""

    shares_a = True

    def combine_site(self, site: str, factors: list[Factors], weights: list[float]) -> Factors:
        """See SiteMerge."""
        first = factors[0]
        if not all(torch.equal(f.a_RI, first.a_RI) for f in factors):
            raise InvalidInput(f"FedSVD joins adapters trained with one A; see {site}.")
        if (total := sum(weights)) <= 0 or min(weights) < 0:
            raise InvalidInput("FedSVD takes shares: no negative weight, and one above zero.")
        shares = [w * f.scale / total for f, w in zip(factors, weights, strict=True)]
        mean = weighted_sum([f.b_OR for f in factors], shares)
        return truncated_factors(Factors(first.a_RI, mean), first.rank)
