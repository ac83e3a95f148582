"""The tokens that the newest step drew, where the next one finds them before the host does."""

from __future__ import annotations

import torch
from torch import Tensor


class NewestDraw:
    """A buffer that stays where it is, so that a captured step can read it.

    Args:
        num_rows: most tokens that a step draws.
        device: of the model.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._token_ids = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def keep(self, token_ids_R: Tensor) -> None:
        """Take over what has been drawn."""
        self._token_ids[: len(token_ids_R)] = token_ids_R

    def resolve(self, token_ids_T: Tensor) -> Tensor:
        """The ids, with drawn tokens in place of those that stand for them.

        See `scheduler.domain.request.unread_token`.
        """
        drawn = self._token_ids[(-1 - token_ids_T).clamp_(min=0)]
        return torch.where(token_ids_T < 0, drawn, token_ids_T)
