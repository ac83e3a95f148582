"""Sequences that are compressed as they grow: the slots that stay, however tokens are scheduled."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from scheduler.domain.kv_cadence import KvCadence
from scheduler.policy.blocks import BlockPool
from tests.unit.workers.slow_compression import Slot, SlowCache, Tokens
from tests.unit.workers.test_head_attention import CONFIG
from workers.head_pages import HeadPages
from workers.held_slots import HeldSlots
from workers.kept_slots import lay_out, record_of, store_kept
from workers.kv_cache import KVCache
from workers.kv_observation import AttentionSums
from workers.kv_policies import KV_POLICIES
from workers.kv_policy import KvPolicy
from workers.kv_watch import KvWatch, WatchedLayers, WatchedRows
from workers.layer_slots import LayerSlots

NAMES = KV_POLICIES.names()
WINDOW, NUM_SINKS, INTERVAL = 4, 2, 16
PAGE_TOKENS, NUM_BLOCKS = 4, 40
SIZES = CONFIG.num_layers, CONFIG.num_heads, CONFIG.num_kv_heads
OWNER = "s"


def make(name: str, budget: float, **options: Any) -> KvPolicy:
    config = {"window": WINDOW, "num_sinks": NUM_SINKS, "decode_interval": INTERVAL, **options}
    return KV_POLICIES[name](KV_POLICIES[name].Config.model_validate({"budget": budget, **config}))


def random_tokens(seed: int, num_tokens: int, dtype: torch.dtype = torch.float32) -> Tokens:
    return Tokens.random(seed, (*SIZES, num_tokens, CONFIG.head_dim), dtype)


class Grown:
    """One sequence in pages, computed a chunk at a time; what it gives up is poisoned."""

    def __init__(self, policy: KvPolicy, cadence: KvCadence, tokens: Tokens) -> None:
        self.policy = policy
        self.cadence = cadence
        self.tokens = tokens
        self.pool = BlockPool(NUM_BLOCKS, PAGE_TOKENS)
        dtype, device = tokens.keys.dtype, torch.device("cpu")
        self.cache = KVCache(CONFIG, NUM_BLOCKS, PAGE_TOKENS, dtype, device)
        self.cache.storage[1:] = float("nan")
        self.blocks: list[int] = []
        self.pages: HeadPages | None = None
        self.watch: KvWatch | None = None
        self.num_tokens = 0

    @property
    def room(self) -> int:
        """Tokens up to the next compression."""
        end = self.cadence.next_after(self.num_tokens)
        assert end is not None
        return end - self.num_tokens

    def run(self, count: int) -> None:
        """Compute `count` tokens, and compress if it is time."""
        start, self.num_tokens = self.num_tokens, self.num_tokens + count
        self._grow(self.num_tokens)
        chunk = slice(start, self.num_tokens)
        for layer in range(CONFIG.num_layers):
            self._write(layer, start, count)
            if self.cadence.sees(start, count):
                rows = WatchedRows(self._watch_at(start), slice(0, count), start, self.held)
                rows.see(layer, self.tokens.queries[layer, :, chunk].transpose(0, 1))
        if self.watch is not None:
            self.watch.stop = self.num_tokens
        if self.cadence.is_due(self.num_tokens):
            self._compress()

    @property
    def held(self) -> HeldSlots:
        return HeldSlots(self.cache, self.blocks, self.pages, self.num_tokens)

    def slots(self, layer: int, head: int) -> list[Slot]:
        """What a head holds now, as the specification writes it."""
        seen = self.held.read(layer)
        counts = torch.zeros(seen.positions.shape) if seen.log_counts is None else seen.log_counts
        return [
            Slot(int(position), key, value, math.exp(float(count)), float(total))
            for position, key, value, count, total in zip(
                *(each[head] for each in (seen.positions, seen.keys, seen.values)),
                counts[head],
                seen.column_sums[head],
                strict=True,
            )
            if position >= 0
        ]

    def _watch_at(self, start: int) -> KvWatch:
        if self.watch is None or not self.watch.goes_on_at(start):
            stretch = self.cadence.stretch(start)
            self.watch = KvWatch(self.policy, CONFIG.num_layers, stretch, start)
        return self.watch

    def _grow(self, num_tokens: int) -> None:
        blocks_for = self.pool.blocks_for if self.pages is None else self.pages.blocks_for
        missing = max(0, blocks_for(num_tokens) - len(self.blocks))
        self.blocks += self.pool.allocate(OWNER, missing)
        self.cache.clear(list(self.pool.take_fresh()))

    def _write(self, layer: int, start: int, count: int) -> None:
        keys, values = (
            rows[layer, :, start : start + count].transpose(0, 1)
            for rows in (self.tokens.keys, self.tokens.values)
        )
        if self.pages is None:
            position = torch.arange(start, start + count)
            blocks = torch.tensor(self.blocks)[position // PAGE_TOKENS]
            places = blocks, slice(None), position % PAGE_TOKENS
            self.cache.keys[layer][places], self.cache.values[layer][places] = keys, values
        else:
            self.pages.reserve(start + count, self.blocks)
            self.cache.write_slots(self.pages.slots(start, count)[layer], keys, values)

    def _compress(self) -> None:
        assert self.watch is not None
        kept = self.policy.compress(WatchedLayers(self.watch, self.held))
        self.pages = lay_out(kept, self.num_tokens, PAGE_TOKENS)
        self.pages.record = record_of(kept)
        self.pool.free(OWNER, self.blocks)
        self.cache.storage[self.blocks] = float("nan")
        self.blocks = self.pool.allocate(OWNER, self.pages.blocks_for(self.num_tokens))
        self.cache.clear(list(self.pool.take_fresh()))
        store_kept(kept, self.pages, self.blocks, self.cache)
        self.watch.forget()


def grown(grown_by: Grown, num_tokens: int, sizes: list[int]) -> Grown:
    """Compute tokens in chunks of these sizes, again and again, none across a compression."""
    turn = 0
    while grown_by.num_tokens < num_tokens:
        size = min(sizes[turn % len(sizes)], grown_by.room, num_tokens - grown_by.num_tokens)
        grown_by.run(size)
        turn += 1
    return grown_by


def assert_same_slots(got: list[Slot], want: list[Slot]) -> None:
    assert [slot.position for slot in got] == [slot.position for slot in want]
    for own, other in zip(got, want, strict=True):
        torch.testing.assert_close(own.key.double(), other.key.double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.value.double(), other.value.double(), rtol=1e-4, atol=1e-5)
        assert own.count == pytest.approx(other.count, rel=1e-5)


HEADS = [(layer, head) for layer in range(SIZES[0]) for head in range(SIZES[2])]
CHUNKS = st.lists(st.integers(1, 20), min_size=1, max_size=6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # kernels, plain torch
@pytest.mark.parametrize("name", NAMES)
@given(
    seed=st.integers(0, 2**20),
    num_prompt=st.integers(1, 40),
    budget=st.one_of(st.integers(6, 24), st.sampled_from([0.3, 0.8])),
    chunks=CHUNKS,
)
@settings(max_examples=4, deadline=None)
def test_a_growing_sequence_holds_what_the_specification_says(
    name: str, dtype: torch.dtype, seed: int, num_prompt: int, budget: float, chunks: list[int]
) -> None:
    num_tokens = num_prompt + 2 * INTERVAL + 7
    policy = make(name, budget, **({"threshold": 0.05} if name == "ems" else {}))
    cadence = policy.cadence(num_prompt, num_tokens)
    assert cadence is not None
    tokens = random_tokens(seed, num_tokens, dtype)
    slow = SlowCache(name, policy, cadence, tokens)

    fast = grown(Grown(policy, cadence, tokens), num_tokens, chunks)

    slow.run(num_tokens)
    for layer, head in HEADS:
        assert_same_slots(fast.slots(layer, head), slow.heads[layer][head])


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**20), num_prompt=st.integers(1, 40), chunks=CHUNKS)
@settings(max_examples=10, deadline=None)
def test_tokens_one_by_one_or_in_chunks_leave_the_same_bits(
    name: str, seed: int, num_prompt: int, chunks: list[int]
) -> None:
    num_tokens = num_prompt + 3 * INTERVAL + 5
    policy = make(name, 12)
    cadence = policy.cadence(num_prompt, num_tokens)
    assert cadence is not None
    tokens = random_tokens(seed, num_tokens)

    decoded = grown(Grown(policy, cadence, tokens), num_tokens, [1])
    recomputed = grown(Grown(policy, cadence, tokens), num_tokens, chunks)

    for layer in range(CONFIG.num_layers):
        own, other = decoded.held.read(layer), recomputed.held.read(layer)
        for field in ("keys", "values", "positions", "column_sums"):
            assert torch.equal(getattr(own, field), getattr(other, field))
        assert (own.log_counts is None) == (other.log_counts is None)
        if own.log_counts is not None and other.log_counts is not None:
            assert torch.equal(own.log_counts, other.log_counts)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**20), budget=st.integers(6, 30), num_prompt=st.integers(1, 60))
@settings(max_examples=4, deadline=None)
def test_budgets_are_kept_and_blocks_given_back(
    name: str, seed: int, budget: int, num_prompt: int
) -> None:
    num_tokens = num_prompt + 4 * INTERVAL
    policy = make(name, budget)
    cadence = policy.cadence(num_prompt, num_tokens)
    if cadence is None:
        assert num_tokens <= budget + INTERVAL
        return
    sequence = Grown(policy, cadence, random_tokens(seed, num_tokens))

    for _ in range(num_tokens):
        sequence.run(1)
        num_held = [len(sequence.slots(*place)) for place in HEADS]
        since = sequence.num_tokens - (sequence.pages.num_tokens if sequence.pages else 0)
        if sequence.pages is not None:
            assert since < INTERVAL
            assert sum(num_held) <= (budget + since) * len(HEADS)
        sequence.pool.check_conserved()
        owned = sequence.pool.num_blocks - sequence.pool.num_free
        assert owned == len(sequence.blocks)
        assert owned <= -(-max(sum(num_held) // len(HEADS), 1) // PAGE_TOKENS) + 1


def test_sinks_and_the_window_are_always_there() -> None:
    policy = make("adakv", 12, num_sinks=3)
    cadence = policy.cadence(30, 100)
    assert cadence is not None

    sequence = grown(Grown(policy, cadence, random_tokens(3, 78)), 78, [5])

    for place in HEADS:
        positions = [slot.position for slot in sequence.slots(*place)]
        assert positions[:3] == [0, 1, 2]
        assert positions[-WINDOW:] == [74, 75, 76, 77]
    assert len({len(sequence.slots(*place)) for place in HEADS}) > 1  # heads differ


def test_copies_that_merge_again_and_again_are_attended_to_as_all_of_them() -> None:
    period, num_tokens = WINDOW + NUM_SINKS, 60
    once = random_tokens(4, period)
    tokens = Tokens(
        random_tokens(5, num_tokens).queries,
        *(rows.repeat(1, 1, num_tokens // period, 1) for rows in (once.keys, once.values)),
    )
    policy = make("ems", period, merge_ratio=16, decode_interval=3 * period)
    cadence = policy.cadence(4 * period, num_tokens + 1)
    assert cadence is not None

    sequence = grown(Grown(policy, cadence, tokens), num_tokens, [1])

    assert cadence.is_due(num_tokens)
    query = torch.randn(CONFIG.head_dim, generator=torch.Generator().manual_seed(6))
    for layer, head in HEADS:
        slots = sequence.slots(layer, head)
        assert len(slots) == period
        assert sum(slot.count for slot in slots) == pytest.approx(num_tokens)
        got = attended(query, slots)
        keys, values = tokens.keys[layer, head], tokens.values[layer, head]
        torch.testing.assert_close(got, (keys @ query).softmax(0) @ values)


def attended(query: Tensor, slots: list[Slot]) -> Tensor:
    keys, values = (torch.stack([getattr(s, name) for s in slots]) for name in ("key", "value"))
    counts = torch.tensor([slot.count for slot in slots])
    return (keys @ query + counts.log()).softmax(0) @ values


@given(seed=st.integers(0, 99), num_tokens=st.integers(5, 40), chunk=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_queries_that_are_counted_early_count_the_same(
    seed: int, num_tokens: int, chunk: int
) -> None:
    tokens = random_tokens(seed, num_tokens)
    queries, keys, values = tokens.queries[0], tokens.keys[0], tokens.values[0]
    late, early = AttentionSums(WINDOW, 2), AttentionSums(WINDOW, 2)
    late.see(queries, 0)
    for start in range(0, num_tokens, chunk):
        stop = min(start + chunk, num_tokens)
        early.see(queries[:, start:stop], start)
        early.count(LayerSlots.of_tokens(keys[:, :stop], values[:, :stop]))

    slots = LayerSlots.of_tokens(keys, values)
    torch.testing.assert_close(early.observe(slots).column_sums, late.observe(slots).column_sums)


@pytest.mark.parametrize("budget", [100, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_what_fits_the_budget_is_never_compressed(name: str, budget: float) -> None:
    assert make(name, budget).cadence(30, 101) is None


def test_an_answer_that_outgrows_the_budget_is_compressed_at_the_next_interval() -> None:
    policy = make("h2o", 40)

    assert policy.cadence(30, 500) == KvCadence(30 + INTERVAL, 30 + INTERVAL, INTERVAL, INTERVAL)
    assert policy.cadence(30, 30 + INTERVAL) is None
    assert make("snapkv", 40).cadence(50, 500) == KvCadence(50, WINDOW, INTERVAL, WINDOW)
    assert make("snapkv", 40, decode_interval=None).cadence(50, 500) == KvCadence(50, WINDOW)
    assert make("snapkv", 40, decode_interval=None).cadence(30, 500) is None


@pytest.mark.parametrize("interval", [0, 15, 2**20 + 1, 31, 32.0, True, "32"])
def test_impossible_intervals_are_refused(interval: object) -> None:
    with pytest.raises(ValidationError):
        make("snapkv", 64, window=32, decode_interval=interval)
