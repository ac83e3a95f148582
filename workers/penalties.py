"""Penalties and biases of all rows of logits: one upload of places and one of numbers a kind.

Repetition counts prompt and output, presence and frequency the output alone.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from scheduler.domain.request import Sequence
from workers.device_copy import upload


def penalise(logits_RV: Tensor, sequences: list[Sequence]) -> Tensor:
    """The rows after penalties and biases; the same tensor when no row asks for any."""
    factors = [_factors(sequence) for sequence in sequences]
    shifts = [_shifts(sequence) for sequence in sequences]
    if not any(factors) and not any(shifts):
        return logits_RV
    logits_RV = logits_RV.clone()
    if any(factors):
        places, numbers = _entries(factors, logits_RV)
        values = logits_RV[places]
        logits_RV[places] = torch.where(values > 0, values / numbers, values * numbers)
    if any(shifts):
        places, numbers = _entries(shifts, logits_RV)
        logits_RV[places] += numbers
    return logits_RV


def _factors(sequence: Sequence) -> dict[int, float]:
    """What divides a positive logit of a token, and multiplies a negative one."""
    factor = sequence.request.sampling.repetition_penalty
    return {} if factor == 1 else dict.fromkeys(sequence.token_ids, factor)


def _shifts(sequence: Sequence) -> dict[int, float]:
    """What is added to the logit of a token."""
    params = sequence.request.sampling
    shifts = dict(params.logit_bias)
    if params.presence_penalty or params.frequency_penalty:
        for token, count in Counter(sequence.output_token_ids).items():
            penalty = params.presence_penalty + params.frequency_penalty * count
            shifts[token] = shifts.get(token, 0.0) - penalty
    return shifts


def _entries(numbers: list[dict[int, float]], like: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Places (row, token) and numbers of all rows' entries; no place twice."""
    entries = [(row, *entry) for row, each in enumerate(numbers) for entry in each.items()]
    rows, tokens, values = zip(*entries, strict=True)
    places = upload([rows, tokens], torch.int64, like.device)
    return (places[0], places[1]), upload(list(values), like.dtype, like.device)
