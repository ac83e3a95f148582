"""What attends for the spans of a batch: the kernels of their device, or plain torch."""

from __future__ import annotations

from collections.abc import Sequence

from workers import cpu_attention, gpu_attention, gpu_heads
from workers.attention import Attends, AttendsBack, Extent
from workers.attention_groups import paged_groups, window_groups
from workers.batch import TrainWindow
from workers.head_attention import HeadSpan, head_groups
from workers.kv_cache import KVCache
from workers.model import DecoderConfig

PACKS = (cpu_attention.try_pack_spans, gpu_attention.try_pack_spans)
PAGES = (cpu_attention.try_paged_spans, gpu_attention.try_paged_spans)
HEADS = (cpu_attention.try_head_spans, gpu_heads.try_head_spans)


def pack_attention(window: TrainWindow, config: DecoderConfig) -> Sequence[AttendsBack]:
    """What attends for one training window."""
    for try_spans in PACKS:
        spans = try_spans(window, config)
        if spans is not None:
            return spans
    return window_groups(window, window.pack.grad_out.device)


def paged_attention(
    extents: list[Extent], tables: list[list[int]], cache: KVCache, config: DecoderConfig
) -> Sequence[Attends]:
    """What attends for inference spans, given each span's block table."""
    if not extents:
        return []
    for try_spans in PAGES:
        spans = try_spans(extents, tables, cache, config)
        if spans is not None:
            return spans
    return paged_groups(extents, tables, cache, cache.keys.device)


def head_attention(
    compressed: list[HeadSpan], cache: KVCache, config: DecoderConfig
) -> Sequence[Attends]:
    """What attends for spans of compressed sequences."""
    if not compressed:
        return []
    for try_spans in HEADS:
        spans = try_spans(compressed, cache, config)
        if spans is not None:
            return spans
    return head_groups(compressed, cache)
