"""Sequences of both layouts in one pool: what they attend to, whatever came before."""

from __future__ import annotations

from itertools import count, product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from scheduler.policy.blocks import BlockPool
from workers.attention import Extent, Sinks
from workers.cpu_attention import CpuSpans
from workers.head_attention import HeadGroup, HeadSpan
from workers.head_pages import HeadPages
from workers.held_slots import HeldSlots
from workers.kept_slots import lay_out, record_of, store_kept
from workers.kv_cache import KVCache
from workers.kv_policy import KeptHead
from workers.model import DecoderConfig
from workers.span_attention import head_attention, paged_attention

NUM_BLOCKS, PAGE_TOKENS = 40, 4
CONFIG = DecoderConfig(
    num_layers=2,
    hidden_size=96,
    intermediate_size=80,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=97,
    max_model_len=256,
    rms_eps=1e-6,
    has_qkv_bias=False,
    has_qk_norm=False,
    tie_embeddings=False,
    windows=(None, None),
    inv_freq=torch.ones(8),
    rope_scale=1.0,
)
HEADS = list(product(range(CONFIG.num_layers), range(CONFIG.num_kv_heads)))
KERNEL_TYPES = {torch.float32: CpuSpans, torch.float64: HeadGroup}


class Stored:
    """One sequence: where it lies, and a plain copy of what each of its heads should hold."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_tokens = 0
        self.blocks: list[int] = []
        self.pages: HeadPages | None = None
        self.keys: dict[tuple[int, int], Tensor] = {}
        self.values: dict[tuple[int, int], Tensor] = {}
        self.counts: dict[tuple[int, int], Tensor] = {}

    def append(self, k_LTKD: Tensor, v_LTKD: Tensor) -> None:
        for layer, head in HEADS:
            place, new = (layer, head), len(k_LTKD[0])
            for held, rows in ((self.keys, k_LTKD), (self.values, v_LTKD)):
                own = rows[layer, :, head]
                held[place] = torch.cat((held[place], own)) if place in held else own
            old = self.counts.get(place, torch.zeros(0))
            self.counts[place] = F.pad(old, (0, new))

    def last(self, held: str, layer: int, count: int) -> Tensor:
        """The newest rows of its keys or values, (count, K, D)."""
        heads = range(CONFIG.num_kv_heads)
        return torch.stack([getattr(self, held)[layer, head][-count:] for head in heads], dim=1)

    def attend(self, layer: int, q_THD: Tensor) -> Tensor:
        """Softmax attention of the last queries, one query head at a time."""
        out = torch.empty_like(q_THD)
        for head in range(CONFIG.num_heads):
            place = layer, head // CONFIG.group_size
            keys, values = self.keys[place], self.values[place]
            for row, query in enumerate(q_THD[:, head]):
                seen = len(keys) - len(q_THD) + row + 1
                logits = keys[:seen] @ query / CONFIG.head_dim**0.5
                weights = (logits + self.counts[place][:seen].to(logits.dtype)).softmax(0)
                out[row, head] = weights @ values[:seen]
        return out


class Store:
    """A pool and its cache; blocks are poisoned whenever they are given up."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.pool = BlockPool(NUM_BLOCKS, PAGE_TOKENS)
        self.cache = KVCache(CONFIG, NUM_BLOCKS, PAGE_TOKENS, dtype, torch.device("cpu"))
        self.cache.storage[1:] = float("nan")

    def rand(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)

    def grow(self, sequence: Stored, count: int) -> bool:
        """Append random tokens, if the pool has room for them."""
        total = sequence.num_tokens + count
        blocks_for = self.pool.blocks_for if not sequence.pages else sequence.pages.blocks_for
        missing = blocks_for(total) - len(sequence.blocks)
        if not self.pool.can_allocate(missing):
            return False
        sequence.blocks += self.pool.allocate(sequence.name, missing)
        self.cache.clear(list(self.pool.take_fresh()))
        shape = CONFIG.num_layers, count, CONFIG.num_kv_heads, CONFIG.head_dim
        keys, values = self.rand(*shape), self.rand(*shape)
        self._write(sequence, keys, values)
        sequence.append(keys, values)
        sequence.num_tokens = total
        return True

    def _write(self, sequence: Stored, keys: Tensor, values: Tensor) -> None:
        start, count = sequence.num_tokens, keys.shape[1]
        position = torch.arange(start, start + count)
        for layer in range(CONFIG.num_layers):
            if sequence.pages is None:
                blocks = torch.tensor(sequence.blocks)[position // PAGE_TOKENS]
                places = blocks, slice(None), position % PAGE_TOKENS
                self.cache.keys[layer][places] = keys[layer]
                self.cache.values[layer][places] = values[layer]
            else:
                sequence.pages.reserve(start + count, sequence.blocks)
                slots = sequence.pages.slots(start, count)[layer]
                self.cache.write_slots(slots, keys[layer], values[layer])

    def compress(self, sequence: Stored, kept: list[list[KeptHead]]) -> None:
        """Move a sequence into pages of its own, as an engine does."""
        pages = lay_out(kept, sequence.num_tokens, PAGE_TOKENS)
        pages.record = record_of(kept)
        self.give_up(sequence)
        sequence.blocks = self.pool.allocate(sequence.name, pages.blocks_for(sequence.num_tokens))
        self.cache.clear(list(self.pool.take_fresh()))
        store_kept(kept, pages, sequence.blocks, self.cache)
        sequence.pages = pages
        for layer, head in HEADS:
            own = kept[layer][head]
            sequence.keys[layer, head], sequence.values[layer, head] = own.keys, own.values
            sequence.counts[layer, head] = own.log_count

    def give_up(self, sequence: Stored) -> None:
        self.pool.free(sequence.name, sequence.blocks)
        self.cache.storage[sequence.blocks] = float("nan")
        sequence.blocks = []

    def attend(self, layer: int, sequences: list[Stored], counts: list[int], q: Tensor) -> Tensor:
        """All sequences' last tokens in one batch, both layouts mixed."""
        extents, tables, compressed, row = [], [], [], 0
        for sequence, num_queries in zip(sequences, counts, strict=True):
            extent = Extent(row, num_queries, sequence.num_tokens - num_queries)
            row += num_queries
            if sequence.pages is None:
                extents.append(extent)
                tables.append(sequence.blocks)
            else:
                compressed.append(HeadSpan(extent, sequence.pages))
        groups = [
            *paged_attention(extents, tables, self.cache, CONFIG),
            *(heads := head_attention(compressed, self.cache, CONFIG)),
        ]
        assert all(isinstance(group, KERNEL_TYPES[self.dtype]) for group in heads)
        keys, values = (
            torch.cat([s.last(held, layer, n) for s, n in zip(sequences, counts, strict=True)])
            for held in ("keys", "values")
        )
        wide = torch.promote_types(self.dtype, torch.float32)
        sinks = Sinks(torch.full_like(q, float("nan")), torch.empty(q.shape[:2], dtype=wide), False)
        for group in groups:
            group.run(layer, None, (q, keys, values), sinks)
        return sinks.out


def some_kept(
    store: Store, sequence: Stored, counts: list[int], merges: bool
) -> list[list[KeptHead]]:
    """Random slots of each head, `counts` of them."""
    kept: list[list[KeptHead]] = [[] for _ in range(CONFIG.num_layers)]
    for (layer, head), num in zip(HEADS, counts, strict=True):
        keys, values = sequence.keys[layer, head], sequence.values[layer, head]
        order = torch.randperm(len(keys), generator=store.generator)
        slots = order[: max(1, min(num, len(keys)))].sort().values
        more = torch.rand(len(slots), generator=store.generator) * 3 * merges
        counted = sequence.counts[layer, head][slots] + more
        pairs = keys[slots], values[slots]
        sums = torch.zeros(len(slots))
        kept[layer].append(KeptHead(slots, slots, *pairs, counted, sums))
    return kept


class BothLayouts(RuleBasedStateMachine):
    """Sequences come, grow, are compressed and leave; each attends to what is its own."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(self.dtype)
        self.sequences: list[Stored] = []
        self.names = count()

    @rule(num_tokens=st.integers(1, 30))
    def arrive(self, num_tokens: int) -> None:
        sequence = Stored(f"s{next(self.names)}")
        if self.store.grow(sequence, num_tokens):
            self.sequences.append(sequence)

    @precondition(lambda self: self.sequences)
    @rule(which=st.integers(0, 99), num_tokens=st.integers(1, 9))
    def grow(self, which: int, num_tokens: int) -> None:
        self.store.grow(self.sequences[which % len(self.sequences)], num_tokens)

    @precondition(lambda self: self.sequences)
    @rule(
        which=st.integers(0, 99),
        counts=st.lists(st.integers(1, 30), min_size=len(HEADS), max_size=len(HEADS)),
        merges=st.booleans(),
    )
    def compress(self, which: int, counts: list[int], merges: bool) -> None:
        sequence = self.sequences[which % len(self.sequences)]
        num_before = len(sequence.blocks)
        self.store.compress(sequence, some_kept(self.store, sequence, counts, merges))
        assert len(sequence.blocks) <= num_before

    @precondition(lambda self: self.sequences)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        self.store.give_up(self.sequences.pop(which % len(self.sequences)))

    @rule(num_blocks=st.integers(1, NUM_BLOCKS))
    def training_borrows_and_returns(self, num_blocks: int) -> None:
        run = self.store.pool.lend(num_blocks)
        if run is not None:
            self.store.cache.storage[run.start : run.stop] = float("nan")
            self.store.pool.take_back(run)

    @invariant()
    def every_block_is_somewhere_once(self) -> None:
        self.store.pool.check_conserved()
        owned = sum(len(sequence.blocks) for sequence in self.sequences)
        assert self.store.pool.num_free == NUM_BLOCKS - 1 - owned

    @invariant()
    def each_reads_what_it_holds(self) -> None:
        for sequence in self.sequences:
            layer = len(self.sequences) % CONFIG.num_layers
            held = HeldSlots(
                self.store.cache, sequence.blocks, sequence.pages, sequence.num_tokens
            ).read(layer)
            for head in range(CONFIG.num_kv_heads):
                is_slot, place = held.positions[head] >= 0, (layer, head)
                assert torch.equal(held.keys[head, is_slot], sequence.keys[place])
                assert torch.equal(held.values[head, is_slot], sequence.values[place])
                if held.log_counts is not None:
                    assert torch.equal(held.log_counts[head, is_slot], sequence.counts[place])
                    assert held.log_counts[head, ~is_slot].isneginf().all()
                assert not held.keys[head, ~is_slot].any()

    @invariant()
    def each_attends_to_its_own(self) -> None:
        if not self.sequences:
            return
        shortest = [min(map(len, sequence.keys.values())) for sequence in self.sequences]
        counts = [min(length, 1 + place % 3) for place, length in enumerate(shortest)]
        layer = len(self.sequences) % CONFIG.num_layers
        q = self.store.rand(sum(counts), CONFIG.num_heads, CONFIG.head_dim)

        out = self.store.attend(layer, self.sequences, counts, q)

        for sequence, got, own in zip(
            self.sequences, out.split(counts), q.split(counts), strict=True
        ):
            assert torch.allclose(got, sequence.attend(layer, own), atol=2e-5)


class BothLayoutsInPlainTorch(BothLayouts):
    """The same without kernels."""

    dtype = torch.float64


FEW = settings(max_examples=20, stateful_step_count=10, deadline=None)
TestKernels = BothLayouts.TestCase
TestKernels.settings = FEW
TestPlainTorch = BothLayoutsInPlainTorch.TestCase
TestPlainTorch.settings = FEW


@pytest.mark.parametrize("dtype", list(KERNEL_TYPES))
@pytest.mark.parametrize("num_queries", [1, 3])
def test_heads_that_hold_everything_give_the_uniform_bits(
    dtype: torch.dtype, num_queries: int
) -> None:
    store = Store(dtype)
    plain, other = Stored("plain"), Stored("other")
    assert store.grow(other, 9)
    assert store.grow(plain, 37)
    q = store.rand(num_queries, CONFIG.num_heads, CONFIG.head_dim)
    before = [store.attend(layer, [plain], [num_queries], q) for layer in range(CONFIG.num_layers)]

    everything = [plain.num_tokens] * len(HEADS)
    store.compress(plain, some_kept(store, plain, everything, merges=False))

    for layer, want in enumerate(before):
        assert torch.equal(store.attend(layer, [plain], [num_queries], q), want)
