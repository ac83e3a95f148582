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
from workers.kv_policy import KV_POLICIES, KeptHead, KvPolicy, Ranking

POOLED_TOKENS = 5


@KV_POLICIES.register("ems")
class Ems(KvPolicy):
    """Global-local score; merging with a zero class and a count of what was merged."""

    class Config(KvPolicy.Config):
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
        members = self._classes(keys, values, tokens, merging)
        weights = members * ranked.scores[merging, None]
        own = ranked.scores[tokens, None]
        merged_values = own * values[tokens] + weights.T @ values[merging]
        merged_values /= own + weights.sum(0)[:, None]
        directions = F.normalize(keys, dim=-1)
        turned = F.normalize(own * directions[tokens] + weights.T @ directions[merging], dim=-1)
        merged_keys = turned * keys[tokens].norm(dim=-1, keepdim=True)
        joined = members.sum(0)
        changed = joined[:, None] > 0
        return KeptHead(
            tokens,
            torch.where(changed, merged_keys.to(seen.keys.dtype), seen.keys[head, tokens]),
            torch.where(changed, merged_values.to(seen.values.dtype), seen.values[head, tokens]),
            joined.log1p(),
        )

    def _classes(
        self, keys: torch.Tensor, values: torch.Tensor, tokens: torch.Tensor, merging: torch.Tensor
    ) -> torch.Tensor:
        """Which centre each token joins, one-hot [merging, centres]; none for the zero class."""
        likeness = _cosines(keys, merging, tokens) * _cosines(values, merging, tokens)
        zero_class = likeness.new_full((len(merging), 1), self.config.threshold)
        joined = torch.cat([likeness, zero_class], dim=1).argmax(1)
        return F.one_hot(joined, len(tokens) + 1)[:, :-1].float()


def _cosines(rows: torch.Tensor, some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    directions = F.normalize(rows, dim=-1)
    return (directions[some] @ directions[others].T).relu()
