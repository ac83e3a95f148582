"""EMS: evict, then merge. Source: Li et al. 2024, arXiv:2412.08521.

    global_j = column sum of j / queries that see j,  local_j = attention of the last queries to j
    score_j = max(global_j * mean(local) / mean(global), local_j), pooled over neighbours

The best tokens of a head are centres. The next best join the centre of largest
relu(cos(K, K')) * relu(cos(V, V')), or the zero class where no centre reaches `threshold`, which
drops them. Values are averaged by score; keys keep their centre's norm and average directions.

Ours, for the paper leaves it open: threshold, how many may merge, pooling, equal head budgets, and
the bias log(1 + number merged), without which a merged slot weighs no more than one token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field

from workers.kernels.cpu_compression import KeysValues, cpu_compression_for
from workers.kv_observation import LayerObservation, column_sums, group_mean, pool
from workers.kv_policy import KV_POLICIES, KeptHead, Ranking
from workers.sum_score import SumScore

POOLED_TOKENS = 5


@KV_POLICIES.register("ems")
class Ems(SumScore):
    """Global-local score; merging with a zero class and a count of what was merged."""

    class Config(SumScore.Config):
        """Options of EMS."""

        threshold: float = Field(
            0.6, ge=0, le=2, description="Likeness below which a token is dropped, not merged."
        )
        merge_ratio: float = Field(
            2, ge=0, le=16, description="Tokens that may merge, in multiples of those kept."
        )

    config: Config

    def score(self, seen: LayerObservation) -> torch.Tensor:
        """See KvPolicy."""
        heard = torch.arange(seen.num_tokens, 0, -1)
        overall = seen.column_sums / heard
        local = group_mean(column_sums(seen.queries, seen.keys), len(seen.keys))
        aligned = overall * local.mean(1, keepdim=True) / overall.mean(1, keepdim=True)
        return pool(torch.maximum(aligned, local), "max", POOLED_TOKENS)

    def keep(self, seen: LayerObservation, ranked: Ranking, counts: list[int]) -> list[KeptHead]:
        """See KvPolicy: all heads at once, for each keeps equally many."""
        count = counts[0]
        tokens = ranked.order[:, :count].sort(1).values
        merging = ranked.order[:, count : count + int(self.config.merge_ratio * count)]
        centres = _pairs(seen, tokens)
        slot, likeness = likest_centres(_pairs(seen, merging), centres, self.config.threshold)
        joins = likeness >= self.config.threshold  # the others are of the zero class
        joins &= ranked.scores.gather(1, merging) > 0
        heads = joins.nonzero()[:, 0]
        joined = Joined(heads, merging[joins], count * heads + slot[joins])
        log_counts = _merge(centres, tokens, joined, seen, ranked.scores)
        kept = zip(tokens, *centres, log_counts, strict=True)
        return [KeptHead(*slots) for slots in kept]


def likest_centres(
    rows: KeysValues, centres: KeysValues, floor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The centre that each token of a head is most like, and how much [num_kv_heads, n].

    Args:
        rows: keys and values of tokens [num_kv_heads, n, head_dim].
        centres: those of the centres [num_kv_heads, c, head_dim].
        floor: a likeness below it may read as 0.

    Returns:
        Indices into `centres`, and relu(cos(K, K')) * relu(cos(V, V')).
    """
    kernels = cpu_compression_for(rows[0])
    if kernels is not None:
        return kernels.likest_centres(rows, centres, floor)
    best = []
    for sides in zip(*rows, *centres, strict=True):  # one head's pairs are all held at once
        keys, values, centre_keys, centre_values = (F.normalize(s.float(), dim=-1) for s in sides)
        likeness = (keys @ centre_keys.T).relu_()
        likeness *= (values @ centre_values.T).relu_()
        best.append(likeness.max(1))
    return torch.stack([b.indices for b in best]), torch.stack([b.values for b in best])


def _pairs(seen: LayerObservation, tokens: torch.Tensor) -> KeysValues:
    """Keys and values of some tokens of each head [num_kv_heads, n, head_dim], copied."""
    return _rows(seen.keys, tokens), _rows(seen.values, tokens)


def _rows(side: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    num_heads, num_tokens, head_dim = side.shape
    places = tokens + num_tokens * torch.arange(num_heads)[:, None]
    picked = side.flatten(0, 1).index_select(0, places.flatten())
    return picked.view(*tokens.shape, head_dim)


@dataclass(frozen=True)
class Joined:
    """Tokens that merge, of all heads.

    Attributes:
        heads: of which KV head each is [n].
        tokens: their places in the prompt [n].
        slots: the slot that each joins, counted over all heads [n].
    """

    heads: torch.Tensor
    tokens: torch.Tensor
    slots: torch.Tensor


def _merge(
    centres: KeysValues,
    tokens: torch.Tensor,
    joined: Joined,
    seen: LayerObservation,
    scores: torch.Tensor,
) -> torch.Tensor:
    """Average each token that joins into its slot of `centres`, which is written.

    Returns:
        The log-counts of the slots of `tokens`.
    """
    changed, place = joined.slots.unique(return_inverse=True)
    members = torch.cat([tokens.flatten()[changed], joined.tokens])
    heads = torch.cat([changed // tokens.shape[1], joined.heads])
    place = torch.cat([torch.arange(len(changed)), place])
    weights, keys, values = (
        each[heads, members].float() for each in (scores[..., None], seen.keys, seen.values)
    )
    terms = torch.cat([weights * F.normalize(keys, dim=-1), weights * values, weights], dim=1)
    sums = torch.zeros(len(changed), terms.shape[1]).index_add_(0, place, terms)
    turned, total, mass = sums.split([keys.shape[1], values.shape[1], 1], dim=1)
    norms = keys[: len(changed)].norm(dim=-1, keepdim=True)
    kept_keys, kept_values = (side.flatten(0, 1) for side in centres)
    kept_keys[changed] = (F.normalize(turned, dim=-1) * norms).to(kept_keys.dtype)
    kept_values[changed] = (total / mass).to(kept_values.dtype)
    joining = torch.bincount(joined.slots, minlength=tokens.numel())
    return joining.float().log1p().view(tokens.shape)
