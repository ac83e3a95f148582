"""The tokens of one draw, on their way to the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scheduler.domain.messages import TokenLogprobs
from scheduler.domain.request import Sequence
from workers.device_copy import Download, upload
from workers.token_scores import read_score, score


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One drawn token; `token_id` is None where the logits were not finite."""

    token_id: int | None
    logprobs: TokenLogprobs | None


class DrawnTokens:
    """One token for each row of logits.

    Args:
        leads: whose rows they are.
        logits_RV: before penalties; what log-probabilities are taken of.
        token_ids_R: drawn, int64.
        is_finite_R: whether all of a row's logits are.
    """

    def __init__(
        self, leads: list[Sequence], logits_RV: Tensor, token_ids_R: Tensor, is_finite_R: Tensor
    ) -> None:
        self.leads = leads
        self.token_ids = token_ids_R
        self._numbers = Download(torch.stack((token_ids_R, is_finite_R.to(token_ids_R.dtype))))
        self._asked = [
            row for row, lead in enumerate(leads) if lead.request.sampling.num_logprobs is not None
        ]
        self._scores = self._score(logits_RV) if self._asked else None

    def read(self) -> list[SampledToken]:
        """The tokens, row by row, once they have come."""
        scores = self._read_scores()
        return [
            SampledToken(token if finite else None, scores.get(row))
            for row, (token, finite) in enumerate(self._numbers.read().T.tolist())
        ]

    def _score(self, logits_RV: Tensor) -> Download:
        rows = upload(self._asked, torch.int64, logits_RV.device)
        most = max(self._num_alternatives(row) for row in self._asked)
        return Download(score(logits_RV[rows], self.token_ids[rows], most))

    def _read_scores(self) -> dict[int, TokenLogprobs]:
        if self._scores is None:
            return {}
        lines = self._scores.read().tolist()
        return {
            row: read_score(line, self._num_alternatives(row))
            for row, line in zip(self._asked, lines, strict=True)
        }

    def _num_alternatives(self, row: int) -> int:
        return self.leads[row].request.sampling.num_logprobs or 0
