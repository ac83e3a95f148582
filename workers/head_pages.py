"""Where the KV heads of one compressed sequence keep their slots: in pages of their own.

A superblock is a page for each layer and KV head. A uniform sequence gives every head its page of
each superblock. A compressed one owns its superblocks alone and deals their pages out as heads need
them, so heads may hold different numbers of slots. A new token takes the next slot of every head.

A page has a number: where it lies in `KVCache.storage`, counted in pages of keys and of values.

Shape suffixes: L layers, K KV heads, M pages of a head, N slots of a head, T tokens.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from workers.head_tables import HeadTables
from workers.slot_record import SlotRecord


class HeadPages:
    """Page tables and lengths of one sequence.

    Attributes:
        table_LKM: (L, K, M) int32 numbers of pages; those that a head does not have are 0, which
            lies in the null block.
        log_counts_LKN: what attention adds to the logits of each head's first N slots, float32;
            None: nothing.
        record: what else is known of those slots; None: they will not be compressed again.
    """

    def __init__(
        self,
        kept_LK: Tensor,
        num_tokens: int,
        page_tokens: int,
        log_counts_LKN: Tensor | None = None,
    ) -> None:
        """Heads that hold `kept_LK` slots in place of the first `num_tokens` tokens."""
        self.table_LKM = torch.zeros(*kept_LK.shape, 0, dtype=torch.int32)
        self.log_counts_LKN = log_counts_LKN
        self.record: SlotRecord | None = None
        self.num_tokens = num_tokens
        self._kept = kept_LK
        self._page_tokens = page_tokens
        self._heads_by_length: Counter[int] = Counter(kept_LK.flatten().tolist())
        self._pages = torch.zeros_like(kept_LK)
        self._num_dealt = 0
        self._reaches = 0
        self._tables: HeadTables | None = None

    @property
    def num_kept(self) -> int:
        """Slots in place of the first tokens, on average over layers and heads."""
        return round(float(self._kept.double().mean()))

    @property
    def num_dropped(self) -> int:
        """How many fewer slots than tokens a head holds, on average."""
        return self.num_tokens - self.num_kept

    def blocks_for(self, num_tokens: int) -> int:
        """Superblocks that hold the sequence when it has `num_tokens`."""
        added, size = num_tokens - self.num_tokens, self._page_tokens
        pages = sum(
            heads * -(-(kept + added) // size) for kept, heads in self._heads_by_length.items()
        )
        return -(-pages // self._kept.numel())

    def lengths(self, num_tokens: int) -> Tensor:
        """Slots of each head when the sequence has `num_tokens`, (L, K) int64."""
        return self._kept + (num_tokens - self.num_tokens)

    def most_slots(self, num_tokens: int) -> int:
        """Slots of the fullest head when the sequence has `num_tokens`."""
        return max(self._heads_by_length) + num_tokens - self.num_tokens

    def reserve(self, num_tokens: int, block_table: list[int]) -> None:
        """Deal pages of the sequence's superblocks out, until `num_tokens` have a place.

        Pages are dealt for as many more tokens as the superblocks have room for, so that tables
        change as seldom as blocks are added.
        """
        if num_tokens <= self._reaches:
            return
        while self.blocks_for(num_tokens + 1) <= len(block_table):
            num_tokens += 1
        wanted = -(-self.lengths(num_tokens) // self._page_tokens)
        most = max(int(wanted.max()), self.table_LKM.shape[2])
        table = self.table_LKM.new_zeros(*wanted.shape, most)
        table[:, :, : self.table_LKM.shape[2]] = self.table_LKM
        place = torch.arange(most)
        is_new = (place >= self._pages[..., None]) & (place < wanted[..., None])
        count = int(is_new.sum())
        dealt = torch.arange(self._num_dealt, self._num_dealt + count)
        table[is_new] = self._page_numbers(dealt, block_table).to(table.dtype)
        self.table_LKM, self._pages = table, wanted
        self._num_dealt += count
        room = wanted * self._page_tokens - self._kept
        self._reaches = self.num_tokens + int(room.min())

    def slots(self, start: int, count: int) -> Tensor:
        """Where tokens start .. start + count - 1 go: (L, T, K), see `KVCache.write_slots`."""
        index = self.lengths(start)[:, None] + torch.arange(count)[None, :, None]
        pages = index // self._page_tokens
        numbers = self.table_LKM.long().gather(2, pages.transpose(1, 2)).transpose(1, 2)
        return numbers * self._page_tokens + index % self._page_tokens

    def tables_on(self, device: torch.device) -> HeadTables:
        """The tables as the kernels of a device find them."""
        if self._tables is None:
            shifts = self._kept - self.num_tokens
            self._tables = HeadTables(shifts, self.log_counts_LKN, device)
        self._tables.follow(self.table_LKM)
        return self._tables

    def _page_numbers(self, dealt: Tensor, block_table: list[int]) -> Tensor:
        """Numbers of the sequence's pages, given their places in the order of dealing."""
        num_layers, num_heads = self._kept.shape
        block = torch.tensor(block_table)[dealt // (num_layers * num_heads)]
        layer, head = dealt // num_heads % num_layers, dealt % num_heads
        return (block * num_layers + layer) * 2 * num_heads + head
