"""What rows of a fused qkv output need beside their numbers: norms of heads, and places in pages.

Shape suffixes: B blocks, K KV heads, P tokens of a page, D head_dim, T rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class QkvShape:
    """Heads of a qkv output, side by side: queries, then keys, then values."""

    heads: int
    kv_heads: int
    dim: int

    @property
    def turned(self) -> int:
        """Heads that are rotated: queries and keys."""
        return self.heads + self.kv_heads


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm weights (D,) of query and key heads, in families that have them."""

    query: Tensor
    key: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class PageRows:
    """Rows of a batch whose K and V belong into one layer's pages.

    Attributes:
        rows: which of the batch they are.
        blocks_T, offsets_T: page and place in it; no page where the block is negative.
    """

    keys_BKPD: Tensor
    values_BKPD: Tensor
    rows: slice
    blocks_T: Tensor
    offsets_T: Tensor
