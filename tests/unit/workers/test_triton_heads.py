"""Heads with tables of their own in Triton: what they attend to, and where their rows go."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.workers.test_head_attention import CONFIG as SMALL
from tests.unit.workers.triton_device import DEVICE, DTYPE, assert_close, rand
from workers.attention import Extent
from workers.gpu_attention import PlacedSpan, head_shape, span_tiles
from workers.gpu_heads import GpuHeadRows, PlacedHeads, heads_place
from workers.head_attention import HeadSpan
from workers.head_pages import HeadPages
from workers.kernels import reference
from workers.kernels.triton.gpu_kernels import GpuKernels
from workers.kernels.triton.snapkv import column_sums
from workers.kv_cache import KVCache
from workers.padded_step import UNIFORM

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=6, deadline=None)
PAGE, DIM = 4, 6
CONFIG = replace(SMALL, head_dim=DIM)
LAYERS, KV_HEADS, GROUP = CONFIG.num_layers, CONFIG.num_kv_heads, CONFIG.group_size


class Mixed:
    """Sequences of both layouts in one cache, each with a span at its end, and rows that pad."""

    def __init__(self, seed: int, longest: int) -> None:
        self.random = Random(seed)
        self.cache = KVCache(CONFIG, 120, PAGE, DTYPE, DEVICE)
        self.cache.storage[1:] = 1e3 * rand(seed, *self.cache.storage[1:].shape)
        self.free = self.random.sample(range(1, 120), 119)
        self.counts = [self.random.randint(1, longest) for _ in range(4)]
        self.spans: list[PlacedSpan] = []
        self.lines: list[tuple[int, ...]] = []
        self.pages: list[HeadPages | None] = []
        self.blocks: list[list[int]] = []
        self.table: list[int] = []
        row = 0
        for place, count in enumerate(self.counts):
            extent = Extent(row, count, self.random.randint(0, 60))
            (self._add_uniform if place == 1 else self._add_compressed)(extent)
            row += count
        self.spans.append(PlacedSpan(Extent(row, 1, 0), len(self.table)))  # pads
        self.lines.append(UNIFORM)
        self.table.append(0)
        self.rows = row + 1

    def _add_uniform(self, extent: Extent) -> None:
        blocks = [self.free.pop() for _ in range(-(-extent.num_keys // PAGE))]
        self.spans.append(PlacedSpan(extent, len(self.table)))
        self.lines.append(UNIFORM)
        self.pages.append(None)
        self.blocks.append(blocks)
        self.table += blocks

    def _add_compressed(self, extent: Extent) -> None:
        compressed_at = self.random.randint(0, extent.start)
        kept = torch.tensor(
            [[self._kept(compressed_at) for _ in range(KV_HEADS)] for _ in range(LAYERS)]
        )
        counts = None
        if self.random.random() < 0.7:
            most = max(1, int(kept.max()))
            counts = rand(self.random.randrange(99), LAYERS, KV_HEADS, most).abs().float().cpu()
            counts *= torch.arange(most) < kept[..., None]
        pages = HeadPages(kept, compressed_at, PAGE, counts)
        blocks = [self.free.pop() for _ in range(pages.blocks_for(extent.num_keys))]
        pages.reserve(extent.num_keys, blocks)
        placed = PlacedHeads.of(HeadSpan(extent, pages), DEVICE)
        self.spans.append(placed)
        self.lines.append(placed.tables)
        self.pages.append(pages)
        self.blocks.append(blocks)

    def _kept(self, num_tokens: int) -> int:
        return self.random.choice((0, self.random.randint(0, num_tokens)))

    def numbers(self, which: int, layer: int, head: int) -> list[int]:
        """Where each slot of a head lies, counted in slots of pages."""
        pages, num_keys = self.pages[which], self.spans[which].extent.num_keys
        if pages is None:
            firsts = [(b * LAYERS + layer) * 2 * KV_HEADS + head for b in self.blocks[which]]
            return [firsts[slot // PAGE] * PAGE + slot % PAGE for slot in range(num_keys)]
        length = int(pages.lengths(num_keys)[layer, head])
        table = pages.table_LKM[layer, head].tolist()
        return [table[slot // PAGE] * PAGE + slot % PAGE for slot in range(length)]

    def held(self, which: int, layer: int, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values (slots, 1, DIM) and log-counts (1, slots) of a head."""
        rows = self.cache.storage.view(-1, DIM)
        places = torch.tensor(self.numbers(which, layer, head), device=DEVICE)
        pages, biases = self.pages[which], torch.zeros(1, len(places), dtype=DTYPE, device=DEVICE)
        if pages is not None and pages.log_counts_LKN is not None:
            counts = pages.log_counts_LKN[layer, head][: len(places)]
            biases[0, : len(counts)] = counts.to(DEVICE)
        return rows[places][:, None], rows[places + KV_HEADS * PAGE][:, None], biases

    def place(self) -> object:
        lines = torch.tensor(self.lines, device=DEVICE)
        return heads_place(self.cache, lines, torch.tensor(self.table, dtype=torch.int32))


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("longest", [1, 30])
@FEW
@given(seed=SEEDS)
def test_spans_attend_to_what_each_of_their_heads_holds(
    longest: int, splits: int, seed: int
) -> None:
    mixed, shape, layer = Mixed(seed, longest), head_shape(CONFIG, None), seed % LAYERS
    q = rand(seed, mixed.rows, CONFIG.num_heads, DIM)
    out, lse = torch.full_like(q, torch.nan), torch.full_like(q[..., 0], torch.nan)

    tiles = replace(span_tiles(mixed.spans, shape, DEVICE), splits=splits)
    GpuKernels().attend(q, mixed.place()(layer), tiles, shape, out, lse)

    assert not out[-1].any()  # zeros of the null block
    for which, count in enumerate(mixed.counts):
        first = mixed.spans[which].extent.row
        rows = slice(first, first + count)
        for head in range(KV_HEADS):
            keys, values, biases = mixed.held(which, layer, head)
            members = slice(head * GROUP, (head + 1) * GROUP)
            want, want_lse = reference.attention(
                q[rows, members], keys, values, len(keys) - count, None, biases
            )
            assert_close(out[rows, members], want)
            assert_close(lse[rows, members], want_lse)


@pytest.mark.parametrize("longest", [1, 9])
@FEW
@given(seed=SEEDS)
def test_rows_go_to_the_last_slots_of_each_head_and_nowhere_else(longest: int, seed: int) -> None:
    mixed, layer = Mixed(seed, longest), seed % LAYERS
    k = rand(seed + 1, mixed.rows, KV_HEADS + 3, DIM)[:, 1:-2]
    v = rand(seed + 2, mixed.rows, KV_HEADS, DIM)
    want = mixed.cache.storage.clone()
    rows = want.view(-1, DIM)
    for which, count in enumerate(mixed.counts):
        first = mixed.spans[which].extent.row
        for head in range(KV_HEADS):
            places = torch.tensor(mixed.numbers(which, layer, head)[-count:], device=DEVICE)
            rows[places] = k[first : first + count, head]
            rows[places + KV_HEADS * PAGE] = v[first : first + count, head]

    spans = torch.tensor([span.line for span in mixed.spans], device=DEVICE)
    placed = GpuHeadRows(GpuKernels(), spans, max(mixed.counts), mixed.place())
    placed.store(mixed.cache, layer, k, v)

    assert torch.equal(mixed.cache.storage, want)


@given(seed=SEEDS, num_added=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_tables_change_only_when_blocks_are_added(seed: int, num_added: int) -> None:
    random = Random(seed)
    kept = torch.tensor([[random.randint(0, 30) for _ in range(3)] for _ in range(2)])
    pages, blocks, changes = HeadPages(kept, 40, PAGE), [], 0

    for num_tokens in range(41, 41 + num_added):
        missing = pages.blocks_for(num_tokens) - len(blocks)
        blocks += range(len(blocks) + 1, len(blocks) + 1 + missing)
        before = pages.table_LKM
        pages.reserve(num_tokens, blocks)
        changes += pages.table_LKM is not before
        assert (missing > 0) == (pages.table_LKM is not before)
        owned = pages.table_LKM[pages.table_LKM > 0].tolist()
        assert len(owned) == len(set(owned)) <= 6 * len(blocks)
        assert pages.slots(num_tokens - 1, 1).min() >= 2 * 3 * 2 * PAGE


@pytest.mark.parametrize("are_counted", [False, True])
@FEW
@given(seed=SEEDS, num_keys=st.sampled_from((1, 40, 130, 600)), num_queries=st.integers(1, 70))
def test_a_key_gets_the_attention_of_queries_anywhere_after_it(
    are_counted: bool, seed: int, num_keys: int, num_queries: int
) -> None:
    random = Random(seed)
    places = [random.randrange(num_keys) for _ in range(num_queries)]
    queries = rand(seed, GROUP * KV_HEADS, num_queries, DIM)
    keys = rand(seed + 1, num_keys, KV_HEADS, DIM + 2)[..., :DIM].transpose(0, 1)
    counts = None
    if are_counted:
        counts = 2 * rand(seed + 2, KV_HEADS, num_keys)
        counts[:, 1:][counts[:, 1:] < -2] = -torch.inf  # padding; some key is always seen

    sums = column_sums(queries, keys, torch.tensor(places, device=DEVICE), counts)

    want = torch.zeros(KV_HEADS, num_keys, dtype=DTYPE, device=DEVICE)
    for query, place in zip(queries.transpose(0, 1), places, strict=True):
        want += reference.column_sums(query[None], keys.transpose(0, 1), place, None, counts)
    assert_close(sums.view(KV_HEADS, GROUP, num_keys).sum(1), want)
