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

from workers.kernels.cpu_compression import KeysValues, cpu_compression_for
from workers.kv_observation import LayerObservation, column_sums, group_mean, pool
from workers.kv_policy import KV_POLICIES, KeptHead, Ranking
from workers.layer_slots import LayerSlots
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
        overall = seen.column_sums / (seen.num_tokens - seen.positions)
        local = column_sums(seen.queries, seen.keys, log_counts=seen.log_counts)
        local = group_mean(local, len(seen.keys))
        aligned = overall * local.mean(1, keepdim=True) / overall.mean(1, keepdim=True)
        return pool(torch.maximum(aligned, local), "max", POOLED_TOKENS)

    def keep(self, seen: LayerObservation, ranked: Ranking, counts: list[int]) -> list[KeptHead]:
        """See KvPolicy: all heads at once, for each keeps equally many."""
        count = counts[0]
        merging = ranked.order[:, count : count + int(self.config.merge_ratio * count)]
        centres = Centres.of(seen, ranked.order[:, :count].sort(1).values)
        place, likeness = likest_centres(
            _pairs(seen, merging), (centres.keys, centres.values), self.config.threshold
        )
        joins = likeness >= self.config.threshold  # the others are of the zero class
        joins &= ranked.scores.gather(1, merging) > 0
        heads = joins.nonzero()[:, 0]
        joined = Joined(heads, merging[joins], count * heads + place[joins])
        centres.take_in(joined, seen, ranked.scores)
        return centres.kept_heads()


def likest_centres(
    rows: KeysValues, centres: KeysValues, floor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The centre that each slot of a head is most like, and how much [num_kv_heads, n].

    Args:
        rows: keys and values of slots [num_kv_heads, n, head_dim].
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


@dataclass(frozen=True)
class Joined:
    """Slots that merge, of all heads.

    Attributes:
        heads: of which KV head each is [n].
        slots: which of its slots [n].
        places: the centre that each joins, counted over all heads [n].
    """

    heads: torch.Tensor
    slots: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class Centres:
    """The slots that stay: copies, into which others merge.

    Attributes:
        slots: which they are of each KV head's [num_kv_heads, c].
        positions, log_counts, column_sums: see LayerSlots [num_kv_heads, c].
        keys, values: [num_kv_heads, c, head_dim].
    """

    slots: torch.Tensor
    positions: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    log_counts: torch.Tensor
    column_sums: torch.Tensor

    @classmethod
    def of(cls, seen: LayerSlots, slots: torch.Tensor) -> Centres:
        """The slots of each head, as they are before the others join."""
        counts = torch.zeros_like(seen.column_sums) if seen.log_counts is None else seen.log_counts
        known = (each.gather(1, slots) for each in (counts, seen.column_sums))
        return cls(slots, seen.positions.gather(1, slots), *_pairs(seen, slots), *known)

    def take_in(self, joined: Joined, seen: LayerSlots, scores: torch.Tensor) -> None:
        """Average what joins into its centre, weighed by score; count it, and add up attention."""
        changed, place = joined.places.unique(return_inverse=True)
        members = torch.cat([self.slots.flatten()[changed], joined.slots])
        heads = torch.cat([changed // self.slots.shape[1], joined.heads])
        place = torch.cat([torch.arange(len(changed)), place])
        weights, sums, num_tokens = (
            each[heads, members, None].float()
            for each in (scores, seen.column_sums, _num_tokens(seen))
        )
        keys, values = (each[heads, members].float() for each in (seen.keys, seen.values))
        terms = [weights * F.normalize(keys, dim=-1), weights * values, weights, sums, num_tokens]
        total = torch.cat(terms, dim=1)
        total = total.new_zeros(len(changed), total.shape[1]).index_add_(0, place, total)
        turned, valued, counted = total.split([keys.shape[1], values.shape[1], 3], dim=1)
        norms = keys[: len(changed)].norm(dim=-1, keepdim=True)
        _write(self.keys, changed, F.normalize(turned, dim=-1) * norms)
        _write(self.values, changed, valued / counted[:, :1])
        _write(self.column_sums, changed, counted[:, 1])
        _write(self.log_counts, changed, counted[:, 2].log())

    def kept_heads(self) -> list[KeptHead]:
        """Head by head."""
        columns = (self.slots, self.positions, self.keys, self.values)
        return [
            KeptHead(*head)
            for head in zip(*columns, self.log_counts, self.column_sums, strict=True)
        ]


def _num_tokens(seen: LayerSlots) -> torch.Tensor:
    """For how many tokens each slot stands [num_kv_heads, N]."""
    if seen.log_counts is None:
        return torch.ones_like(seen.column_sums)
    return seen.log_counts.exp()


def _pairs(seen: LayerSlots, slots: torch.Tensor) -> KeysValues:
    """Keys and values of some slots of each head [num_kv_heads, n, head_dim], copied."""
    return _rows(seen.keys, slots), _rows(seen.values, slots)


def _rows(side: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    num_heads, num_slots, head_dim = side.shape
    places = slots + num_slots * torch.arange(num_heads)[:, None]
    picked = side.flatten(0, 1).index_select(0, places.flatten())
    return picked.view(*slots.shape, head_dim)


def _write(side: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> None:
    """Write rows at places that count over all heads."""
    side.flatten(0, 1)[places] = rows.to(side.dtype)
