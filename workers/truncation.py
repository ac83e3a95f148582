"""What top_k, top_p and min_p cut off, for all rows in one pass and without waiting for the device.

A row is alike in any batch: each of its sums is the last of its own running sums.

Source: Holtzman et al. 2019, arXiv:1904.09751 (top_p); arXiv:2407.01082 (min_p).
"""

from __future__ import annotations

import torch
from torch import Tensor

from scheduler.domain.request import SamplingParams
from workers.device_copy import upload


def truncates(params: SamplingParams) -> bool:
    """Whether any token can be cut off."""
    return bool(params.top_k or params.top_p < 1 or params.min_p > 0)


def truncate(probs_RV: Tensor, params: list[SamplingParams]) -> Tensor:
    """The rows with zeros for what is cut off; of equals the first stay, and the likeliest always.

    top_p is a share of what top_k and min_p leave.
    """
    vocabulary = probs_RV.shape[1]
    numbers = [
        [min(p.top_k or vocabulary, vocabulary) for p in params],
        [p.min_p for p in params],
        [p.top_p for p in params],
    ]
    top_k, min_p, top_p = upload(numbers, probs_RV.dtype, probs_RV.device)[:, :, None]
    values, order = probs_RV.sort(dim=-1, descending=True, stable=True)
    place = torch.arange(vocabulary, device=probs_RV.device)
    keep = (place < top_k) & (values >= min_p * values[:, :1])
    kept = values * keep
    sums = kept.cumsum(-1)
    keep &= (sums - kept < top_p * sums[:, -1:]) | (top_p >= 1)
    keep |= place == 0
    return torch.zeros_like(probs_RV).scatter_(-1, order, values * keep)
