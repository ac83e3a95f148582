"""Page storage of inference K/V.

A page is one layer, one KV head, `block_size` tokens. A uniform sequence takes one page of every
layer and head at a time: a superblock, named by one block id. Block 0 is never handed out; padding
of block tables points at it, and it stays zero.

Shape suffixes: L layers, B blocks, K KV heads, P tokens of a page, D head_dim, T rows, S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.model import DecoderConfig

NULL_BLOCK = 0


class KVCache:
    """K and V pages of one base model, (L, B, K, P, D) each."""

    def __init__(
        self,
        config: DecoderConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (config.num_layers, num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.block_size = block_size
        self.num_blocks = num_blocks

    @staticmethod
    def bytes_per_block(config: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
        """Memory of one superblock, K and V together."""
        tokens = config.num_layers * config.num_kv_heads * block_size
        return 2 * tokens * config.head_dim * dtype.itemsize

    def clear(self, blocks: list[int]) -> None:
        """Zero blocks that have a new owner: nothing of the former one's (NaN too) is read."""
        self.keys[:, blocks] = 0
        self.values[:, blocks] = 0

    def write(
        self, layer: int, blocks_T: Tensor, offsets_T: Tensor, k_TKD: Tensor, v_TKD: Tensor
    ) -> None:
        """Store the rows' K and V at (block, offset)."""
        self.keys[layer][blocks_T, :, offsets_T] = k_TKD
        self.values[layer][blocks_T, :, offsets_T] = v_TKD

    def gather(self, layer: int, tables_SB: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of whole block tables, (S, K, B * P, D) each."""
        spans, blocks = tables_SB.shape

        def read(pages: Tensor) -> Tensor:
            picked = pages[layer].index_select(0, tables_SB.flatten())
            picked = picked.view(spans, blocks, *picked.shape[1:]).transpose(1, 2)
            return picked.reshape(spans, picked.shape[1], -1, picked.shape[-1])

        return read(self.keys), read(self.values)
