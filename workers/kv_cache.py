"""Page storage of inference K/V, whose free blocks training may borrow.

A page is one layer, one KV head, `block_size` tokens. A uniform sequence takes one page of every
layer and head at a time: a superblock, named by one block id, whose bytes lie together. A run of
blocks is therefore plain memory to whoever borrows it. Block 0 is never handed out; padding of
block tables points at it, and it stays zero.

Pages are also known by number, counted through `storage` page by page: see `HeadPages`.

Shape suffixes: L layers, B blocks, K KV heads, P tokens of a page, D head_dim, T rows, S sequences,
M pages of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.device_copy import upload
from workers.model import DecoderConfig

NULL_BLOCK = 0


class KVCache:
    """K and V pages of one base model.

    Attributes:
        storage: (B, L, 2, K, P, D). What nobody has written yet is undefined.
        keys, values: (L, B, K, P, D) views of it.
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        pages = (config.num_kv_heads, block_size, config.head_dim)
        self.storage = torch.empty(
            num_blocks, config.num_layers, 2, *pages, dtype=dtype, device=device
        )
        self.keys, self.values = self.storage.permute(2, 1, 0, 3, 4, 5)
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.clear([NULL_BLOCK])

    @staticmethod
    def bytes_per_block(config: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
        """Memory of one superblock, K and V together."""
        tokens = config.num_layers * config.num_kv_heads * block_size
        return 2 * tokens * config.head_dim * dtype.itemsize

    def clear(self, blocks: list[int]) -> None:
        """Zero blocks that have a new owner: nothing of the former one's (NaN too) is read."""
        if blocks:  # assigning 0 would wait for the device
            self.storage.index_fill_(0, upload(blocks, torch.int64, self.storage.device), 0)

    def memory(self, blocks: range) -> Tensor:
        """The bytes of a run of blocks, (num_bytes,) uint8."""
        return self.storage[blocks.start : blocks.stop].view(torch.uint8).flatten()

    def gather(self, layer: int, tables_SB: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of whole block tables, (S, K, B * P, D) each."""
        return _read(self.keys[layer], tables_SB), _read(self.values[layer], tables_SB)

    def write_slots(self, slots_TK: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """Store rows at slots of pages: page number x P + place in the page."""
        rows = self.storage.view(-1, self.storage.shape[-1])
        rows[slots_TK] = k_TKD
        rows[slots_TK + self.values_after * self.block_size] = v_TKD

    def gather_pages(self, tables_SKM: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of pages by number, (S, K, M * P, D) each."""
        pages = self.storage.view(-1, *self.storage.shape[-2:])
        tables = tables_SKM.long()
        return pages[tables].flatten(2, 3), pages[tables + self.values_after].flatten(2, 3)

    @property
    def values_after(self) -> int:
        """How many pages after a page of keys its values lie."""
        return self.storage.shape[3]


def _read(pages_BKPD: Tensor, tables_SB: Tensor) -> Tensor:
    """The pages of block tables as rows, (S, K, B * P, D)."""
    picked = pages_BKPD.index_select(0, tables_SB.flatten())
    picked = picked.view(*tables_SB.shape, *picked.shape[1:]).transpose(1, 2)
    return picked.reshape(*picked.shape[:2], -1, picked.shape[-1])
