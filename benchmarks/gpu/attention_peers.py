"""Our attention beside torch's own, at the shapes of one layer of an 8B model.

Ours reads keys from pages, or from a training pack; torch's has them side by side. Both see the
same numbers, and `difference` is the largest one between them, as a share of the largest number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from benchmarks.gpu.attention_checks import attend, backward, filled_pack
from benchmarks.gpu.random_model import random_decoder
from benchmarks.gpu.sequences import PAGE
from benchmarks.gpu.setting import Figures, Setting
from workers.attention import Extent
from workers.batch import TrainWindow
from workers.decoder import Decoder
from workers.kv_cache import KVCache
from workers.span_attention import pack_attention, paged_attention


@dataclass(frozen=True, slots=True)
class Spans:
    """So many spans, the last queries of as many contexts of one length."""

    name: str
    count: int
    queries: int
    keys: int


SPANS = (
    Spans("decode, 1 x 2k", 1, 1, 2048),
    Spans("decode, 64 x 2k", 64, 1, 2048),
    Spans("decode, 1 x 64k", 1, 1, 65_536),
    Spans("decode, 16 x 16k", 16, 1, 16_384),
    Spans("chunk, 512 of 4k", 1, 512, 4096),
    Spans("chunk, 2k of 16k", 1, 2048, 16_384),
)
TINY_SPANS = (Spans("decode", 3, 1, 40), Spans("chunk", 1, 10, 40))


def measure(setting: Setting) -> Iterator[Figures]:
    """Microseconds of both for spans of inference, and for a window of training."""
    decoder = random_decoder("tiny" if setting.is_tiny else "8b-layer", setting, 0)
    for spans in TINY_SPANS if setting.is_tiny else SPANS:
        yield {spans.name: span_figures(setting, decoder, spans)}
    yield from training_figures(setting, decoder, 48 if setting.is_tiny else 4096)


@dataclass(frozen=True, slots=True)
class Contest:
    """The same attention by us and by torch."""

    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]


@torch.inference_mode()
def span_figures(setting: Setting, decoder: Decoder, spans: Spans) -> Figures:
    """One shape of inference."""
    return compared(setting, spans_attention(setting, decoder, spans))


def spans_attention(setting: Setting, decoder: Decoder, spans: Spans) -> Contest:
    """Spans over random keys, which torch has side by side."""
    config, size = decoder.config, -(-spans.keys // PAGE)
    cache = KVCache(config, 1 + spans.count * size, PAGE, setting.dtype, setting.device)
    cache.storage.normal_()
    tables = [list(range(1 + i * size, 1 + (i + 1) * size)) for i in range(spans.count)]
    before, many = spans.keys - spans.queries, spans.queries
    extents = [Extent(i * many, many, before) for i in range(spans.count)]
    q = random_heads(setting, spans.count * many, config.num_heads, config.head_dim)
    groups = paged_attention(extents, tables, cache, config)
    keys, values = cache.gather(0, torch.tensor(tables, device=setting.device))
    k, v = (side[:, :, : spans.keys].contiguous() for side in (keys, values))
    stacked = q.unflatten(0, (spans.count, many)).transpose(1, 2)
    return Contest(
        lambda: attend(groups, q)[0],
        lambda: torch_attention(stacked, k, v).transpose(1, 2).flatten(0, 1),
    )


def training_figures(setting: Setting, decoder: Decoder, tokens: int) -> Iterator[Figures]:
    """One example forward, and forward and back with the gradients of q, k and v."""
    config = decoder.config
    pack = filled_pack(setting, decoder, tokens, num_examples=1)
    window = TrainWindow(pack, 0, tokens, 0, pack.layers)
    q, grad = (random_heads(setting, tokens, config.num_heads, config.head_dim) for _ in range(2))
    sides = (q, pack.layers[0]["k"], pack.layers[0]["v"])
    heads = [side.detach().transpose(0, 1)[None].contiguous() for side in sides]

    def torch_forward() -> Tensor:
        with torch.no_grad():
            return torch_attention(*heads)[0].transpose(0, 1)

    def torch_backward() -> Tensor:
        read = [side.requires_grad_() for side in heads]
        out = torch_attention(*read)
        grads = torch.autograd.grad(out, read, grad.transpose(0, 1)[None])
        return torch.cat([each[0].transpose(0, 1).float().flatten() for each in grads])

    forward = Contest(lambda: attend(pack_attention(window, config), q)[0], torch_forward)
    yield {f"training on {tokens}, forward": compared(setting, forward)}
    both = Contest(lambda: backward(window, decoder, q, grad), torch_backward)
    yield {f"training on {tokens}, forward and back": compared(setting, both)}


def torch_attention(q_BHMD: Tensor, k_BKND: Tensor, v_BKND: Tensor) -> Tensor:
    """What torch picks for causal attention whose last query sees the last key."""
    queries, keys = q_BHMD.shape[2], k_BKND.shape[2]
    bias = None if queries == 1 else causal_lower_right(queries, keys)
    return F.scaled_dot_product_attention(q_BHMD, k_BKND, v_BKND, attn_mask=bias, enable_gqa=True)


def compared(setting: Setting, contest: Contest) -> Figures:
    """Both times, and how far the outcomes are apart."""
    got, want = contest.ours().float(), contest.theirs().float()
    return {
        "us": setting.time_s(contest.ours) * 1e6,
        "torch_us": setting.time_s(contest.theirs) * 1e6,
        "difference": float((got - want).abs().max() / want.abs().max()),
    }


def random_heads(setting: Setting, *shape: int) -> Tensor:
    """Normal numbers in the dtype of the run."""
    return torch.randn(shape, device=setting.device).to(setting.dtype)
