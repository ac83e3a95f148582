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

from workers.kernels.cpu_compression import cpu_compression_for
from workers.kv_observation import LayerObservation, column_sums, group_mean, pool
from workers.kv_policy import KV_POLICIES, KeptHead, Ranking
from workers.sum_score import SumScore

POOLED_TOKENS = 5
TINY = 1e-20


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
        slot, likeness = likest_centres(seen, merging, tokens)
        joins = likeness >= self.config.threshold  # the others are of the zero class
        joins &= ranked.scores.gather(1, merging) > 0
        heads = [self.keep_head(seen, head, own) for head, own in enumerate(tokens)]
        for head, (kept, own) in enumerate(zip(heads, joins, strict=True)):
            rows = HeadRows(seen.keys[head], seen.values[head], ranked.scores[head])
            _merge(kept, merging[head, own], slot[head, own], rows)
        return heads


def likest_centres(
    seen: LayerObservation, tokens: torch.Tensor, centres: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The centre that each token of a head is most like, and how much [num_kv_heads, n].

    Args:
        seen: the layer.
        tokens: of each KV head [num_kv_heads, n].
        centres: tokens as well [num_kv_heads, c].

    Returns:
        Indices into `centres`, and relu(cos(K, K')) * relu(cos(V, V')).
    """
    pairs = seen.keys, seen.values
    norms = (pairs[0].float().norm(dim=-1) * pairs[1].float().norm(dim=-1)).clamp(min=TINY)
    kernels = cpu_compression_for(seen.keys)
    find = _products if kernels is None else kernels.likest_centres
    slot, product = find(pairs, tokens, centres, 1 / norms.gather(1, centres))
    return slot, product / norms.gather(1, tokens)


def _products(
    pairs: tuple[torch.Tensor, torch.Tensor],
    tokens: torch.Tensor,
    centres: torch.Tensor,
    scale: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See CpuCompression.likest_centres; one head at a time, whose pairs are all held at once."""
    best = []
    for head, (rows, columns) in enumerate(zip(tokens, centres, strict=True)):
        keys, values = (each[head].float() for each in pairs)
        likeness = (keys[rows] @ keys[columns].T).relu_()
        likeness *= (values[rows] @ values[columns].T).relu_()
        best.append((likeness * scale[head]).max(1))
    return torch.stack([b.indices for b in best]), torch.stack([b.values for b in best])


@dataclass(frozen=True)
class HeadRows:
    """All tokens of one KV head, and what each weighs in a mean."""

    keys: torch.Tensor
    values: torch.Tensor
    weights: torch.Tensor


def _merge(kept: KeptHead, tokens: torch.Tensor, slots: torch.Tensor, rows: HeadRows) -> None:
    """Average each of `tokens` into the slot that it joins; `kept` holds copies, and is written."""
    changed, place = slots.unique(return_inverse=True)
    members = torch.cat([kept.tokens[changed], tokens])
    place = torch.cat([torch.arange(len(changed)), place])
    weights, keys, values = (
        each[members].float() for each in (rows.weights[:, None], rows.keys, rows.values)
    )
    terms = torch.cat([weights * F.normalize(keys, dim=-1), weights * values, weights], dim=1)
    sums = torch.zeros(len(changed), terms.shape[1]).index_add_(0, place, terms)
    turned, total, mass = sums.split([keys.shape[1], values.shape[1], 1], dim=1)
    norms = keys[: len(changed)].norm(dim=-1, keepdim=True)
    kept.keys[changed] = (F.normalize(turned, dim=-1) * norms).to(kept.keys.dtype)
    kept.values[changed] = (total / mass).to(kept.values.dtype)
    kept.log_count[changed] = torch.bincount(slots)[changed].float().log1p()
