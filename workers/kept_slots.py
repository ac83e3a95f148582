"""What a policy keeps of a prompt, laid into pages that the sequence owns alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.head_pages import HeadPages
from workers.kv_cache import KVCache
from workers.kv_policy import KeptHead


def lay_out(kept: Sequence[Sequence[KeptHead]], num_tokens: int, page_tokens: int) -> HeadPages:
    """Pages for what each head of each layer keeps of `num_tokens` tokens; none is dealt yet."""
    lengths = torch.tensor([[len(head.tokens) for head in layer] for layer in kept])
    return HeadPages(lengths, num_tokens, page_tokens, _log_counts(kept, int(lengths.max())))


def store_kept(
    kept: Sequence[Sequence[KeptHead]], pages: HeadPages, block_table: list[int], cache: KVCache
) -> None:
    """Write the kept slots into the superblocks of `block_table`, which hold nothing else."""
    pages.reserve(pages.num_tokens, block_table)
    for layer, heads in enumerate(kept):
        for head, slots in enumerate(heads):
            index = torch.arange(len(slots.tokens))
            numbers = pages.table_LKM[layer, head].long()[index // cache.block_size]
            place = numbers * cache.block_size + index % cache.block_size
            cache.write_slots(place.to(cache.storage.device), slots.keys, slots.values)


def _log_counts(kept: Sequence[Sequence[KeptHead]], most: int) -> Tensor | None:
    """(L, K, N) float32 on the host, padded with 0; None where all are 0."""
    if not any(bool(head.log_count.any()) for layer in kept for head in layer):
        return None
    padded = torch.zeros(len(kept), len(kept[0]), most)
    for layer, heads in enumerate(kept):
        for place, head in enumerate(heads):
            padded[layer, place, : len(head.log_count)] = head.log_count
    return padded
