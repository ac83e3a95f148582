"""EMS: evict, then merge. Source: Li et al. 2024, arXiv:2412.08521.

    global_j = column sum of j / queries that see j,  local_j = attention of the last queries to j
    score_j = max(global_j * mean(local) / mean(global), local_j), pooled over neighbours

The best tokens of a head are centres. The next best join the centre of largest
relu(cos(K, K')) * relu(cos(V, V')), or the zero class where no centre reaches `threshold`, which
drops them. Values are averaged by score; keys keep their centre's norm and average directions.

Ours, for the paper leaves it open: threshold, how many may merge, pooling, equal head budgets, and
the bias log(tokens of a slot), without which a merged slot weighs no more than one token. Slots
that were merged merge again as an answer grows: their sums and numbers of tokens add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field

from workers.kernels.cpu_compression import cpu_compression_for
from workers.kv_observation import LayerObservation, column_sums, group_mean, pool
from workers.kv_policy import KV_POLICIES, KeptHead, Ranking
from workers.layer_slots import LayerSlots
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
        overall = seen.column_sums / (seen.num_tokens - seen.positions)
        local = column_sums(seen.queries, seen.keys, log_counts=seen.log_counts)
        local = group_mean(local, len(seen.keys))
        aligned = overall * local.mean(1, keepdim=True) / overall.mean(1, keepdim=True)
        return pool(torch.maximum(aligned, local), "max", POOLED_TOKENS)

    def keep(self, seen: LayerObservation, ranked: Ranking, counts: list[int]) -> list[KeptHead]:
        """See KvPolicy: all heads at once, for each keeps equally many."""
        count = counts[0]
        slots = ranked.order[:, :count].sort(1).values
        merging = ranked.order[:, count : count + int(self.config.merge_ratio * count)]
        centre, likeness = likest_centres(seen, merging, slots)
        joins = likeness >= self.config.threshold  # the others are of the zero class
        joins &= ranked.scores.gather(1, merging) > 0
        heads = [self.keep_head(seen, head, own) for head, own in enumerate(slots)]
        for head, (kept, own) in enumerate(zip(heads, joins, strict=True)):
            rows = HeadRows.of(seen, ranked.scores, head)
            _merge(kept, merging[head, own], centre[head, own], rows)
        return heads


def likest_centres(
    seen: LayerSlots, slots: torch.Tensor, centres: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The centre that each slot of a head is most like, and how much [num_kv_heads, n].

    Args:
        seen: the layer.
        slots: of each KV head [num_kv_heads, n].
        centres: slots as well [num_kv_heads, c].

    Returns:
        Indices into `centres`, and relu(cos(K, K')) * relu(cos(V, V')).
    """
    pairs = seen.keys, seen.values
    norms = (pairs[0].float().norm(dim=-1) * pairs[1].float().norm(dim=-1)).clamp(min=TINY)
    kernels = cpu_compression_for(seen.keys)
    find = _products if kernels is None else kernels.likest_centres
    centre, product = find(pairs, slots, centres, 1 / norms.gather(1, centres))
    return centre, product / norms.gather(1, slots)


def _products(
    pairs: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    centres: torch.Tensor,
    scale: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See CpuCompression.likest_centres; one head at a time, whose pairs are all held at once."""
    best = []
    for head, (rows, columns) in enumerate(zip(slots, centres, strict=True)):
        keys, values = (each[head].float() for each in pairs)
        likeness = (keys[rows] @ keys[columns].T).relu_()
        likeness *= (values[rows] @ values[columns].T).relu_()
        best.append((likeness * scale[head]).max(1))
    return torch.stack([b.indices for b in best]), torch.stack([b.values for b in best])


@dataclass(frozen=True)
class HeadRows:
    """All slots of one KV head.

    Attributes:
        weights: what each weighs in a mean.
        num_tokens: for how many each stands.
    """

    keys: torch.Tensor
    values: torch.Tensor
    weights: torch.Tensor
    column_sums: torch.Tensor
    num_tokens: torch.Tensor

    @classmethod
    def of(cls, seen: LayerObservation, scores: torch.Tensor, head: int) -> HeadRows:
        """The slots of `head`, weighed by score."""
        sums, counts = seen.column_sums[head], seen.log_counts
        num_tokens = torch.ones_like(sums) if counts is None else counts[head].exp()
        return cls(seen.keys[head], seen.values[head], scores[head], sums, num_tokens)


def _merge(kept: KeptHead, slots: torch.Tensor, centres: torch.Tensor, rows: HeadRows) -> None:
    """Average each of `slots` into its centre; `kept` holds copies, and is written."""
    changed, place = centres.unique(return_inverse=True)
    members = torch.cat([kept.slots[changed], slots])
    place = torch.cat([torch.arange(len(changed)), place])
    columns = (rows.weights, rows.column_sums, rows.num_tokens)
    weights, sums, num_tokens = (each[members, None].float() for each in columns)
    keys, values = rows.keys[members].float(), rows.values[members].float()
    terms = [weights * F.normalize(keys, dim=-1), weights * values, weights, sums, num_tokens]
    joined = torch.cat(terms, dim=1)
    joined = torch.zeros(len(changed), joined.shape[1]).index_add_(0, place, joined)
    turned, total, counted = joined.split([keys.shape[1], values.shape[1], 3], dim=1)
    norms = keys[: len(changed)].norm(dim=-1, keepdim=True)
    kept.keys[changed] = (F.normalize(turned, dim=-1) * norms).to(kept.keys.dtype)
    kept.values[changed] = (total / counted[:, :1]).to(kept.values.dtype)
    kept.column_sums[changed] = counted[:, 1]
    kept.log_count[changed] = counted[:, 2].log()
