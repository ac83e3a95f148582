"""Attention of decode spans, compressed or not, of a prompt's chunk and of a training window."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.gpu.sequences import PAGE
from benchmarks.gpu.setting import Setting
from scheduler.policy.blocks import BlockPool
from scheduler.policy.pack_cursor import PackCursor
from workers.activations import ActivationSpec, SaveLevel
from workers.attention import Attends, Extent, SavedAttention, Sinks
from workers.batch import TrainWindow
from workers.decoder import Decoder
from workers.head_attention import HeadSpan
from workers.head_pages import HeadPages
from workers.kv_cache import KVCache
from workers.pack_layout import PackLayout
from workers.span_attention import head_attention, pack_attention, paged_attention
from workers.train_pack import PackTokens, TrainPack
from workers.training_memory import TrainingMemory


def attention_checks(setting: Setting, decoder: Decoder) -> dict[str, Callable[[], Tensor]]:
    """Each returns what attention wrote."""
    config = decoder.config
    context = 40 if setting.is_tiny else 2000
    cache = KVCache(config, 4 * (context // PAGE + 2), PAGE, setting.dtype, setting.device)
    cache.storage.normal_()
    size = context // PAGE + 1
    tables = [list(range(1 + i * size, 1 + (i + 1) * size)) for i in range(3)]
    decode = [Extent(i, 1, context - 7 * i) for i in range(3)]
    chunk = [Extent(0, context // 2, context // 2)]
    pack = filled_pack(setting, decoder, context)
    window = TrainWindow(pack, context // 4, context, 0, pack.layers)

    def queries(rows: int) -> Tensor:
        shape = (rows, config.num_heads, config.head_dim)
        return torch.randn(shape, device=setting.device).to(setting.dtype)

    def paged(extents: list[Extent]) -> Callable[[], Tensor]:
        q = queries(sum(extent.num_queries for extent in extents))
        own = tables[: len(extents)]
        return lambda: attend(paged_attention(extents, own, cache, config), q)[0]

    q, grad = queries(context - context // 4), queries(context - context // 4)
    compressed, alone = compressed_spans(decoder, context), queries(3)
    return {
        "attention, decode": paged(decode),
        "attention, compressed": lambda: attend(head_attention(compressed, cache, config), alone)[
            0
        ],
        "attention, chunk": paged(chunk),
        "attention, window": lambda: attend(pack_attention(window, config), q)[0],
        "attention, backward": lambda: backward(window, decoder, q, grad),
    }


def compressed_spans(decoder: Decoder, context: int) -> list[HeadSpan]:
    """Three sequences whose heads keep different numbers of slots, some of them merged."""
    heads = decoder.config.num_layers, decoder.config.num_kv_heads
    spans, first = [], 1
    for row in range(3):
        kept = torch.randint(context // 4, context // 2, heads)
        slots = torch.arange(int(kept.max()))
        counts = torch.rand(*heads, len(slots)) * (slots < kept[..., None])
        pages = HeadPages(kept, context, PAGE, counts)
        count = pages.blocks_for(context + 1)
        pages.reserve(context + 1, list(range(first, first + count)))
        spans.append(HeadSpan(Extent(row, 1, context), pages))
        first += count
    return spans


def filled_pack(
    setting: Setting, decoder: Decoder, tokens: int, num_examples: int = 2
) -> TrainPack:
    """Examples of equal length whose keys and values are random."""
    each = tokens // num_examples
    examples = [([0] * each, [1.0] * each) for _ in range(num_examples)]
    cursor = PackCursor.begin(
        tokens,
        decoder.config.num_layers,
        trains=True,
        window_tokens=tokens,
        range_tokens=tokens,
        loss_tokens=tokens,
        is_window_outer=False,
    )
    spec = ActivationSpec.of(decoder.config, setting.dtype)
    layout = PackLayout(spec, SaveLevel.FULL, tokens, decoder.config.num_layers)
    block_bytes = KVCache.bytes_per_block(decoder.config, PAGE, setting.dtype)
    blocks = 2 + layout.num_bytes // block_bytes
    cache = KVCache(decoder.config, blocks, PAGE, setting.dtype, setting.device)
    loan = TrainingMemory(BlockPool(blocks, PAGE), cache, 1 << 40).try_borrow(blocks - 1)
    assert loan is not None
    pack = TrainPack.within(loan, layout, PackTokens.of(examples), cursor)
    for name in ("k", "v"):
        pack.layers[0][name].normal_()
    return pack


def attend(groups: Sequence[Attends], q: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exps of groups whose keys are all stored."""
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    sinks = Sinks(torch.empty_like(q), lse, wants_lse=True)
    for group in groups:
        group.run(0, None, (q, q, q), sinks)
    return sinks.out, sinks.lse


def backward(window: TrainWindow, decoder: Decoder, q: Tensor, grad: Tensor) -> Tensor:
    """Gradients of queries, keys and values, end to end."""
    groups = pack_attention(window, decoder.config)
    out, lse = attend(groups, q)
    keys = window.pack.layers[0]["k"]
    sums = torch.zeros(2, *keys.shape, dtype=torch.float32, device=q.device)
    grad_q = torch.empty_like(q)
    for group in groups:
        group.backward(0, None, SavedAttention(q, out, lse, grad), grad_q, (sums[0], sums[1]))
    return torch.cat((grad_q.float().flatten(), sums.flatten()))
