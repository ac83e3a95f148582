"""What a policy keeps of a sequence, laid into pages that the sequence owns alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from workers.head_pages import HeadPages
from workers.kv_cache import KVCache
from workers.kv_policy import KeptHead
from workers.slot_record import SlotRecord


def lay_out(kept: Sequence[Sequence[KeptHead]], num_tokens: int, page_tokens: int) -> HeadPages:
    """Pages for what each head of each layer keeps of `num_tokens` tokens; none is dealt yet."""
    lengths = torch.tensor([[len(head.slots) for head in layer] for layer in kept])
    return HeadPages(lengths, num_tokens, page_tokens, _log_counts(kept))


def record_of(kept: Sequence[Sequence[KeptHead]]) -> SlotRecord:
    """What the next compression has to know of what each head of each layer keeps."""
    positions = _padded([[head.positions for head in heads] for heads in kept])
    return SlotRecord(
        positions.int(), _padded([[head.column_sums for head in heads] for heads in kept])
    )


def store_kept(
    kept: Sequence[Sequence[KeptHead]], pages: HeadPages, block_table: list[int], cache: KVCache
) -> None:
    """Write the kept slots into the superblocks of `block_table`, which hold nothing else."""
    pages.reserve(pages.num_tokens, block_table)
    lengths = pages.lengths(pages.num_tokens)
    slot = torch.arange(int(lengths.max())).expand(*lengths.shape, -1)
    numbers = pages.table_LKM.long().gather(2, slot // cache.block_size)
    place = numbers * cache.block_size + slot % cache.block_size
    heads = list(chain.from_iterable(kept))
    cache.write_slots(
        place[slot < lengths[..., None]].to(cache.storage.device),
        torch.cat([head.keys for head in heads]),
        torch.cat([head.values for head in heads]),
    )


def _log_counts(kept: Sequence[Sequence[KeptHead]]) -> Tensor | None:
    """(L, K, N) float32 on the host, padded with 0; None where all are 0."""
    counts = _padded([[head.log_count for head in heads] for heads in kept])
    return counts if bool(counts.any()) else None


def _padded(lines: Sequence[Sequence[Tensor]]) -> Tensor:
    """A line for each head of each layer, as long as the longest, on the host: (L, K, N)."""
    flat = list(chain.from_iterable(lines))
    together = torch.cat(flat).cpu()  # one copy, for each waits for the device
    parts = together.split([len(line) for line in flat])
    lines_of_heads = pad_sequence(list(parts), batch_first=True)
    stacked: Tensor = lines_of_heads.unflatten(0, (len(lines), -1))
    return stacked
