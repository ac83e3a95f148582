"""Triton's attention equals its specification: mixed spans, pages, windows, heads of any length."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.workers.triton_device import DEVICE, DTYPE, assert_close, rand
from workers.attention import attend_backward as padded_backward
from workers.kernels import reference
from workers.kernels.span_tiles import GRAD_KEYS, HeadShape, KeyPlace, SpanTiles
from workers.kernels.triton.attention import attend
from workers.kernels.triton.attention_backward import AttentionSaved, attend_backward

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=3, deadline=None)
PAGE, DIM = 4, 6


class Spans:
    """Random spans whose keys lie in pages, or side by side."""

    def __init__(self, seed: int, shape: HeadShape, longest: int, *, paged: bool) -> None:
        random = Random(seed)
        self.shape = shape
        self.counts = [random.randint(1, longest) for _ in range(3)]
        self.starts = [random.choice((0, random.randint(1, 90))) for _ in range(3)]
        self.rows = sum(self.counts)
        heads = shape.kv_heads * shape.group
        self.q = rand(seed, self.rows, heads + 2, shape.dim)[:, 1:-1]
        self.lengths = [s + c for s, c in zip(self.starts, self.counts, strict=True)]
        self.kv = [
            rand(seed + i + 1, 2, n, shape.kv_heads, DIM) for i, n in enumerate(self.lengths)
        ]
        self.firsts: list[int] = []
        self.place = self._pages(random) if paged else self._side_by_side()
        row, table = 0, []
        for count, start, first in zip(self.counts, self.starts, self.firsts, strict=True):
            table.append((row, count, start, first))
            row += count
        self.table = torch.tensor(table, device=DEVICE)

    def _pages(self, random: Random) -> KeyPlace:
        """Pages of layer 1 of 2, in any order, in the layout of the cache."""
        sizes = [-(-n // PAGE) for n in self.lengths]
        blocks = list(range(1, sum(sizes) + 1))
        random.shuffle(blocks)
        heads = self.shape.kv_heads
        storage = rand(0, len(blocks) + 1, 2, 2, heads, PAGE, DIM) * 1e3
        keys, values = storage.permute(2, 1, 0, 3, 4, 5)[:, 1]
        first = 0
        for (k, v), size in zip(self.kv, sizes, strict=True):
            self.firsts.append(first)
            own = blocks[first : first + size]
            for slot in range(len(k)):
                keys[own[slot // PAGE], :, slot % PAGE] = k[slot]
                values[own[slot // PAGE], :, slot % PAGE] = v[slot]
            first += size
        tables = torch.tensor(blocks, dtype=torch.int32, device=DEVICE)
        page, head, token, _ = keys.stride()
        return KeyPlace(keys, values, page, head, token, tables, PAGE)

    def _side_by_side(self) -> KeyPlace:
        keys, values = torch.cat(self.kv, dim=1)
        first = 0
        for length in self.lengths:
            self.firsts.append(first)
            first += length
        return KeyPlace(keys, values, 0, DIM, keys.stride(0))

    def tiles(self, splits: int = 1) -> SpanTiles:
        queries = self.shape.tile_queries(max(self.counts))
        tiles = [(i, q) for i, n in enumerate(self.counts) for q in range(0, n, queries)]
        return SpanTiles(self.table, torch.tensor(tiles, device=DEVICE), queries, splits)

    def key_tiles(self) -> Tensor:
        tiles = [(i, key) for i, n in enumerate(self.lengths) for key in range(0, n, GRAD_KEYS)]
        return torch.tensor(tiles, device=DEVICE)

    def attend(self, splits: int = 1) -> tuple[Tensor, Tensor]:
        out = torch.empty(self.q.shape, dtype=DTYPE, device=DEVICE)
        lse = torch.empty(self.q.shape[:2], dtype=DTYPE, device=DEVICE)
        attend(self.q, self.place, self.tiles(splits), self.shape, out, lse)
        return out, lse

    def each(self) -> list[tuple[slice, Tensor, Tensor, int]]:
        """Rows, keys, values and start of every span."""
        row, result = 0, []
        for count, start, (k, v) in zip(self.counts, self.starts, self.kv, strict=True):
            result.append((slice(row, row + count), k, v, start))
            row += count
        return result

    @property
    def window(self) -> int | None:
        return self.shape.window or None


SHAPES = [HeadShape(2, 2, DIM, 0), HeadShape(1, 3, DIM, 7), HeadShape(3, 1, DIM, 70)]


@pytest.mark.parametrize("longest", [1, 40])
@pytest.mark.parametrize("paged", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@FEW
@given(seed=SEEDS)
def test_spans_of_every_kind_attend(shape: HeadShape, paged: bool, longest: int, seed: int) -> None:
    spans = Spans(seed, shape, longest, paged=paged)

    out, lse = spans.attend()

    for rows, k, v, start in spans.each():
        want, want_lse = reference.attention(spans.q[rows], k, v, start, spans.window)
        assert_close(out[rows], want)
        assert_close(lse[rows], want_lse)


@pytest.mark.parametrize("shape", SHAPES)
@FEW
@given(seed=SEEDS)
def test_keys_in_splits_give_what_they_give_at_once(shape: HeadShape, seed: int) -> None:
    spans = Spans(seed, shape, 2, paged=True)

    out, lse = spans.attend(splits=3)

    want, want_lse = spans.attend()
    assert_close(out, want)
    assert_close(lse, want_lse)


@pytest.mark.parametrize("shape", SHAPES)
@FEW
@given(seed=SEEDS)
def test_backward_writes_queries_and_adds_to_keys_and_values(shape: HeadShape, seed: int) -> None:
    spans = Spans(seed, shape, 170, paged=False)
    spans.q = spans.q.contiguous()
    out, lse = spans.attend()
    grad = rand(seed + 9, *out.shape)
    grad_q = torch.empty_like(out)
    before = rand(seed + 10, 2, *spans.place.keys.shape)
    grad_k, grad_v = before.clone()

    saved = AttentionSaved(spans.q, out, lse, grad)
    tiles = (spans.tiles(), spans.key_tiles())
    attend_backward(saved, spans.place, *tiles, shape, grad_q, (grad_k, grad_v))

    first = 0
    for (rows, k, v, start), length in zip(spans.each(), spans.lengths, strict=True):
        keys = torch.arange(length, device=DEVICE)
        limit = start + torch.arange(rows.stop - rows.start, device=DEVICE)[:, None]
        visible = keys <= limit
        if shape.window:
            visible &= keys > limit - shape.window
        bias = torch.zeros(visible.shape, dtype=DTYPE, device=DEVICE)
        bias.masked_fill_(~visible, float("-inf"))
        parts = (grad[None, rows], spans.q[None, rows])
        kv = (k.transpose(0, 1)[None], v.transpose(0, 1)[None])
        want_q, want_k, want_v = padded_backward(
            *parts, *kv, out[None, rows], lse[None, rows], bias[None]
        )
        own = slice(first, first + length)
        assert_close(grad_q[rows], want_q[0])
        assert_close(grad_k[own] - before[0, own], want_k[0].transpose(0, 1))
        assert_close(grad_v[own] - before[1, own], want_v[0].transpose(0, 1))
        first += length
