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

import torch
import torch.nn.functional as F
from pydantic import Field

from workers.kv_observation import LayerObservation, attention, group_mean, pool
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
        local = group_mean(attention(seen.queries, seen.keys).sum(1), len(seen.keys))
        aligned = overall * local.mean(1, keepdim=True) / overall.mean(1, keepdim=True)
        return pool(torch.maximum(aligned, local), "max", POOLED_TOKENS)

    def keep(self, seen: LayerObservation, head: int, ranked: Ranking, count: int) -> KeptHead:
        """See KvPolicy."""
        tokens = ranked.order[:count].sort().values
        merging = ranked.order[count : count + int(self.config.merge_ratio * count)]
        merging = merging[ranked.scores[merging] > 0]
        keys, values = seen.keys[head].float(), seen.values[head].float()
        directions = F.normalize(keys, dim=-1)
        merging, slot = self._join(directions, F.normalize(values, dim=-1), tokens, merging)
        weights = ranked.scores.float()[:, None]
        merged_values = _sums(weights * values, tokens, merging, slot)
        merged_values /= _sums(weights, tokens, merging, slot)
        turned = F.normalize(_sums(weights * directions, tokens, merging, slot), dim=-1)
        merged_keys = turned * keys[tokens].norm(dim=-1, keepdim=True)
        joined = torch.bincount(slot, minlength=count).float()
        changed = joined[:, None] > 0
        return KeptHead(
            tokens,
            torch.where(changed, merged_keys.to(seen.keys.dtype), seen.keys[head, tokens]),
            torch.where(changed, merged_values.to(seen.values.dtype), seen.values[head, tokens]),
            joined.log1p(),
        )

    def _join(
        self, keys: torch.Tensor, values: torch.Tensor, tokens: torch.Tensor, merging: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens that merge, and the slot that each joins; keys and values are directions.

        Those that no centre is like enough to are of the zero class, and left out.
        """
        likeness = (keys[merging] @ keys[tokens].T).relu_()
        likeness *= (values[merging] @ values[tokens].T).relu_()
        best = likeness.max(1)
        is_like = best.values >= self.config.threshold
        return merging[is_like], best.indices[is_like]


def _sums(
    rows: torch.Tensor, tokens: torch.Tensor, merging: torch.Tensor, slot: torch.Tensor
) -> torch.Tensor:
    """Each slot's own row, and those that join it, added up."""
    return rows[tokens].index_add_(0, slot, rows[merging])
