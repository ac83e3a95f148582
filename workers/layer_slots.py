"""What the KV heads of one layer hold of one sequence: slots, each for one token or for several."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LayerSlots:
    """N slots of each KV head, in order of their tokens, of a sequence of T tokens.

    A head that holds fewer begins with padding: zeros, which no query sees.

    Attributes:
        keys, values: [num_kv_heads, N, head_dim], keys rotated.
        positions: of the tokens that the slots stand for [num_kv_heads, N]; -1: padding.
        log_counts: what attention adds to logits [num_kv_heads, N], -inf for padding; None: none.
        column_sums: attention that the slots have got [num_kv_heads, N], mean over a KV head's
            query heads; zeros where it is not counted.
        num_tokens: T.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    log_counts: torch.Tensor | None
    column_sums: torch.Tensor
    num_tokens: int

    @classmethod
    def of_tokens(cls, keys: torch.Tensor, values: torch.Tensor) -> LayerSlots:
        """A slot for every token, none of which has got attention."""
        num_kv_heads, num_tokens = keys.shape[:2]
        positions = torch.arange(num_tokens, device=keys.device).expand(num_kv_heads, -1)
        return cls(keys, values, positions, None, torch.zeros_like(positions).float(), num_tokens)

    @property
    def num_slots(self) -> int:
        """N."""
        return self.keys.shape[1]
