"""Adds up the weighted logits of the sequences that compute one answer together.

Source: Liu et al. 2021, arXiv:2105.03023 (DExperts); Mitchell et al. 2023, arXiv:2310.12962
(emulated fine-tuning), both with all models on one base.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from scheduler.domain.request import Sequence


def mix_groups(logits_RV: Tensor, sequences: list[Sequence]) -> tuple[Tensor, list[Sequence]]:
    """One row for each sample group, and the groups' leads in the same order.

    Shapes:
        logits_RV: (rows, vocab), one row a sequence; all of a group are among them.
    """
    leads = [sequence for sequence in sequences if sequence.member == 0]
    if len(leads) == len(sequences):
        return logits_RV, sequences
    rows = {sequence.id: logits_RV[row] for row, sequence in enumerate(sequences)}
    mixed = [weighted_sum((rows[member.id] for member in lead.group), lead) for lead in leads]
    return torch.stack(mixed), leads


def weighted_sum(logits: Iterable[Tensor], lead: Sequence) -> Tensor:
    """Sum of the group's logits, in float32 at least; those of a group of one as they are.

    Args:
        logits: of the lead and its followers, in this order; each is dropped before the next comes.
        lead: of the group.
    """
    parts = iter(logits)
    total = _wide(next(parts))
    if lead.followers:
        total = total * lead.weight
    for part, follower in zip(parts, lead.followers, strict=True):
        total.add_(_wide(part), alpha=follower.weight)
    return total


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
