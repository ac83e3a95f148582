"""Compresses the K/V of a prompt that has just been computed, and gives memory back."""

from __future__ import annotations

import torch

from scheduler.domain.request import Sequence
from workers.batch_builder import InferenceRow
from workers.device_copy import upload
from workers.kept_slots import lay_out, store_kept
from workers.model_host import ModelHost
from workers.prompt_watch import PromptWatch, WatchedPrompt


def compress_prompts(host: ModelHost, rows: list[InferenceRow]) -> None:
    """Compress those of a step's sequences whose prompts are computed now, and that go on."""
    for row in rows:
        sequence = row.sequence
        is_computed = sequence.num_computed_tokens == sequence.num_prompt_tokens
        if row.watch is not None and is_computed and sequence in host.scheduler.running:
            _compress(host, sequence, row.watch)


@torch.inference_mode()
def _compress(host: ModelHost, sequence: Sequence, watch: PromptWatch) -> None:
    """Copy what the policy keeps into blocks of the sequence's own, and release the others."""
    cache, num_tokens = host.runner.cache, sequence.num_prompt_tokens
    used = sequence.block_table[: -(-num_tokens // cache.block_size)]
    tables = upload([used], torch.int64, host.runner.device)
    with host.runner.device:
        kept = watch.policy.compress(WatchedPrompt(watch, cache, tables, num_tokens))
    layout = lay_out(kept, num_tokens, cache.block_size)
    fresh = host.scheduler.lay_out(sequence, layout)
    if fresh is not None:
        cache.clear(list(fresh))
        store_kept(kept, layout, sequence.block_table, cache)
    watch.forget()
