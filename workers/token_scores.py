"""Log-probabilities of tokens, with their ranks and the best alternatives, as one block of numbers.

Shape suffixes: T tokens, V vocabulary, N alternatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scheduler.domain.messages import TokenLogprobs


def score(logits_TV: Tensor, token_ids_T: Tensor, num_alternatives: int) -> Tensor:
    """Log-probability, rank, alternatives' ids and their log-probabilities: (T, 2 + 2 N) float64.

    N is `num_alternatives`, or the whole vocabulary where that is less.
    """
    lines = torch.log_softmax(logits_TV, dim=-1)
    chosen = lines.gather(1, token_ids_T[:, None])
    rank = (lines > chosen).sum(1, keepdim=True) + 1
    top = lines.topk(min(num_alternatives, lines.shape[1]), dim=1)
    parts = (chosen, rank, top.indices, top.values)
    return torch.cat([part.double() for part in parts], dim=1)


def read_score(line: list[float], num_alternatives: int) -> TokenLogprobs:
    """One line of such a block, which may hold more alternatives than are wanted."""
    logprob, rank, *top = line
    ids, logprobs = top[: len(top) // 2], top[len(top) // 2 :]
    return TokenLogprobs(
        logprob=logprob,
        rank=int(rank),
        top_ids=tuple(int(i) for i in ids[:num_alternatives]),
        top_logprobs=tuple(logprobs[:num_alternatives]),
    )
