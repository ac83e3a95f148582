"""Compresses the K/V of sequences that have come to such a length, and gives memory back."""

from __future__ import annotations

import torch

from scheduler.domain.request import Sequence
from workers.batch_builder import InferenceRow
from workers.device_copy import making_on
from workers.held_slots import HeldSlots
from workers.kept_slots import lay_out, record_of, store_kept
from workers.kv_watch import KvWatch, WatchedLayers
from workers.model_host import ModelHost


def compress_due(host: ModelHost, rows: list[InferenceRow]) -> None:
    """Compress those of a step's sequences that are due now, and that go on."""
    for row in rows:
        sequence = row.sequence
        if row.watch is not None and sequence.is_due and sequence in host.scheduler.running:
            _compress(host, sequence, row.watch)


@torch.inference_mode()
def _compress(host: ModelHost, sequence: Sequence, watch: KvWatch) -> None:
    """Copy what the policy keeps into blocks of the sequence's own, and release the others."""
    cache, num_tokens = host.runner.cache, sequence.num_computed_tokens
    held = HeldSlots.of(sequence, num_tokens, cache)
    with making_on(host.runner.device):
        kept = watch.policy.compress(WatchedLayers(watch, held))
    pages = lay_out(kept, num_tokens, cache.block_size)
    if sequence.cadence is not None and sequence.cadence.next_after(num_tokens) is not None:
        pages.record = record_of(kept)
    fresh = host.scheduler.lay_out(sequence, pages)
    if fresh is not None:
        cache.clear(list(fresh))
        store_kept(kept, pages, sequence.block_table, cache)
    watch.forget()
