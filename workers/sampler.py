"""Draws the next token of every sequence in one batched pass.

Randomness is stateless: the number that picks a token is a hash of (seed, answer index, position),
so a sequence draws the same tokens alone or in any batch, and again after a preemption.
Log-probabilities are those of the unmodified logits.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from scheduler.domain.request import SamplingParams, Sequence
from workers.device_copy import upload
from workers.drawn_tokens import DrawnTokens
from workers.group import ALONE, Group
from workers.kernels.device_kernels import gpu_kernels_for
from workers.penalties import penalise
from workers.truncation import truncate, truncates

MIN_TEMPERATURE = 1e-5  # below this, scaled logits overflow and the best token is certain


class Sampler:
    """Sampling over rows of logits, one row a sequence; a group's leader draws for all."""

    def __init__(self, group: Group = ALONE) -> None:
        self.group = group

    def sample(self, logits_RV: Tensor, leads: list[Sequence]) -> DrawnTokens:
        """Begin to draw one token for each row.

        Shapes:
            logits_RV: (rows, vocab); not changed.
        """
        wide = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
        token_ids, is_finite = self._on_all_ranks(*self._choose(wide, leads))
        return DrawnTokens(leads, wide, token_ids, is_finite)

    def _choose(self, wide: Tensor, leads: list[Sequence]) -> tuple[Tensor, Tensor]:
        """A token for each row, and whether its logits are finite."""
        shaped = penalise(wide, leads)
        kernels = gpu_kernels_for(wide)
        if kernels is None:
            is_finite = torch.isfinite(wide.sum(-1))
            token_ids = shaped.argmax(-1)
            drawn = [i for i, s in enumerate(leads) if not _is_greedy(s.request.sampling)]
        else:
            token_ids, is_finite = kernels.sample(shaped, *_marks(leads, wide.device))
            drawn = [i for i, s in enumerate(leads) if _is_truncated(s.request.sampling)]
        if drawn:
            rows = upload(drawn, torch.int64, wide.device)
            token_ids[rows] = self._draw(shaped[rows], [leads[i] for i in drawn])
        return token_ids, is_finite

    def _on_all_ranks(self, token_ids: Tensor, is_finite: Tensor) -> tuple[Tensor, Tensor]:
        """What the leader has drawn."""
        if self.group.is_alone:
            return token_ids, is_finite
        told = torch.tensor(self.group.tell([token_ids.tolist(), is_finite.tolist()]))
        return told[0].to(token_ids), told[1].to(is_finite)

    def _draw(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Inverse-CDF sampling of temperature-scaled, truncated rows."""
        params, device = [s.request.sampling for s in sequences], logits.device
        numbers = [[p.temperature for p in params], [uniform(s) for s in sequences]]
        temperatures, draws = upload(numbers, logits.dtype, device)
        probs = torch.softmax(logits / temperatures[:, None], dim=-1)
        cut = [i for i, p in enumerate(params) if truncates(p)]
        if cut:
            rows = upload(cut, torch.int64, device)
            probs[rows] = truncate(probs[rows], [params[i] for i in cut])
        cumulative = probs.cumsum(-1)
        total = cumulative[:, -1]
        below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not reach the total
        marks = torch.minimum(draws * total, below)[:, None]
        picked = torch.searchsorted(cumulative, marks, right=True)
        return picked[:, 0].clamp_(max=logits.shape[1] - 1)


def _is_greedy(params: SamplingParams) -> bool:
    return params.temperature < MIN_TEMPERATURE


def _is_truncated(params: SamplingParams) -> bool:
    return truncates(params) and not _is_greedy(params)


def _marks(sequences: list[Sequence], device: torch.device) -> tuple[Tensor, Tensor]:
    """Temperature, 0 where the likeliest token is certain, and uniform number of every row."""
    params = [s.request.sampling for s in sequences]
    temperatures = [0.0 if _is_greedy(p) else p.temperature for p in params]
    numbers = [temperatures, [uniform(s) for s in sequences]]
    first, second = upload(numbers, torch.float32, device)
    return first, second


def uniform(sequence: Sequence) -> float:
    """The number in [0, 1) that picks this sequence's next token."""
    seed = sequence.request.sampling.seed
    name = sequence.request.request_id if seed is None else str(seed)
    text = f"{name}:{sequence.index}:{sequence.num_output_tokens}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 40) / (1 << 24)  # exact in float32, below 1
