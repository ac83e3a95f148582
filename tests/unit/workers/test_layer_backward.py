"""A layer's backward as one kernel call equals its torch specification, run in float64."""

from __future__ import annotations

from copy import deepcopy
from itertools import starmap
from random import Random
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.policy.blocks import BlockPool
from scheduler.policy.pack_cursor import PackCursor
from workers.activations import ActivationSpec, SaveLevel
from workers.adapter_arena import AdapterArena, AdapterColumns
from workers.adapter_rows import AdapterRows, AdapterRun
from workers.backward_unit import BackwardUnit
from workers.batch import ForwardBatch, TrainWindow
from workers.cpu_backward import CpuBackward
from workers.decoder import Decoder
from workers.decoder_backward import DecoderBackward
from workers.frozen_linear import FrozenLinear
from workers.kernels.native import cpu_flags
from workers.kv_cache import KVCache
from workers.model import (
    MODULE_PATHS,
    DecoderConfig,
    DecoderWeights,
    LayerWeights,
    fused_linears,
)
from workers.pack_layout import PackLayout
from workers.pack_range import PackRange
from workers.rope import default_frequencies
from workers.span_attention import pack_attention
from workers.term_grads import MIDDLE_ONLY, SHRINK_AND_EXPAND, TermGrads, TermParts
from workers.train_pack import PackTokens, TrainPack
from workers.training_memory import Loan

if TYPE_CHECKING:
    from torch import Tensor

CPU = torch.device("cpu")
VOCAB_SIZE, NUM_LAYERS, NUM_COLUMNS, PAGE_TOKENS = 11, 2, 24, 4
# Shares of the largest number: sums in another order; roundings to bf16 along two layers.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
DTYPES = [torch.float32]
if "avx512_bf16" in cpu_flags():
    DTYPES.append(torch.bfloat16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SEEDS = st.integers(0, 2**32 - 1)


class Case:
    """A random decoder and adapter, a pack of examples, and the ranges it is cut into."""

    def __init__(self, seed: int) -> None:
        self.seed, random = seed, Random(seed)
        self.config = random_config(random)
        modules = random.sample(sorted(MODULE_PATHS), random.randint(1, 7))
        rank = random.choice((1, 3, 8, 17))
        self.columns = AdapterColumns(
            random.randint(0, 5), rank, frozenset(modules), random.choice((0, 1, rank))
        )
        kinds = [SHRINK_AND_EXPAND, TermParts(shrink=False, expand=True)]
        self.trained = random.choice([*kinds, *([MIDDLE_ONLY] if self.columns.middle else [])])
        lengths = [random.choice((1, 2, 7, 33, 90)) for _ in range(random.randint(1, 3))]
        self.tokens = PackTokens.of(
            [([random.randrange(VOCAB_SIZE) for _ in range(n)], [1.0] * n) for n in lengths]
        )
        most = random.choice((1, 7, 30, 200))
        stops = range(self.tokens.num_tokens, 0, -most)
        self.ranges = [(max(0, stop - most), stop) for stop in stops]

    def decoder(self, dtype: torch.dtype) -> Decoder:
        """The decoder; its numbers are the same in every dtype."""
        decoder = random_decoder(self.config, self.seed, dtype)
        numbers = Numbers(self.seed + 2, dtype)
        for term in decoder.arena.terms(self.columns).values():
            for middle in term.middle_RM:
                middle.copy_(numbers.of(*middle.shape, mean=0.5))
        return decoder

    def forward(self, decoder: Decoder) -> TrainPack:
        """A pack that stands before its backward."""
        count, layers = self.tokens.num_tokens, NUM_LAYERS
        cursor = PackCursor.begin(count, layers, trains=True, window_tokens=1, range_tokens=1)
        spec = ActivationSpec.of(self.config, decoder.weights.dtype)
        layout = PackLayout(spec, SaveLevel.FULL, count, layers)
        pack = TrainPack.within(lend(layout, self.config), layout, self.tokens, cursor)
        window = TrainWindow(pack, 0, count, 0, pack.layers)
        cos, sin = decoder.rotary.at(self.tokens.positions)
        decoder.forward(
            ForwardBatch(
                token_ids=self.tokens.token_ids,
                cos=cos,
                sin=sin,
                adapters=AdapterRows([AdapterRun(0, count, self.columns)]),
                windows=[window],
                groups=pack_attention(window, self.config),
            )
        )
        pack.grad_out.copy_(Numbers(self.seed + 1, spec.dtype).of(*pack.grad_out.shape))
        return pack

    def backward(self, decoder: Decoder, pack: TrainPack) -> list[Tensor]:
        """After each unit, the gradient below it, and the adapter's sums."""
        spec = ActivationSpec.of(self.config, decoder.weights.dtype)
        grads = TermGrads(self.config, self.columns, spec.wide_dtype, CPU, self.trained)
        backward, results = DecoderBackward(decoder, spec), []
        for layer in reversed(range(NUM_LAYERS)):
            for start, stop in self.ranges:
                shared = PackRange.of(pack, start, stop, self.columns, self.config)
                unit = BackwardUnit(pack, layer, start, stop, self.columns, grads, shared)
                backward.run(unit)
                if layer > 0:  # nobody reads the gradient below the first layer
                    results.append(pack.grad_out[start:stop].clone())
                results.append(grads.flat.clone())
        return results


def random_config(random: Random) -> DecoderConfig:
    kv_heads, head_dim = random.choice((1, 2)), random.choice((16, 48, 64))
    return DecoderConfig(
        num_layers=NUM_LAYERS,
        hidden_size=random.choice((34, 48, 80)),
        intermediate_size=random.choice((30, 64, 100)),
        num_heads=kv_heads * random.choice((1, 2, 3)),
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=VOCAB_SIZE,
        max_model_len=128,
        rms_eps=1e-3,
        has_qkv_bias=random.choice((True, False)),
        has_qk_norm=random.choice((True, False)),
        tie_embeddings=True,
        windows=(random.choice((None, 9)), random.choice((None, 9, 70))),
        inv_freq=default_frequencies(1e4, head_dim),
        rope_scale=1.0,
    )


class Numbers:
    """Random tensors that every dtype holds exactly."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def of(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        drawn = mean + scale * torch.randn(*shape, generator=self.generator)
        return drawn.bfloat16().to(self.dtype)


def random_layer(config: DecoderConfig, numbers: Numbers) -> LayerWeights:
    bias = numbers.of(config.qkv_size, scale=0.1)
    qkv, out, gate_up, down = (
        numbers.of(linear.out_features, linear.in_features, scale=linear.in_features**-0.5)
        for linear in fused_linears(config)
    )
    norms = [numbers.of(config.hidden_size, scale=0.1, mean=1.0) for _ in range(2)]
    head_norms = [numbers.of(config.head_dim, scale=0.1, mean=1.0) for _ in range(2)]
    return LayerWeights(
        (
            FrozenLinear(qkv, bias if config.has_qkv_bias else None),
            *(FrozenLinear(out), FrozenLinear(gate_up), FrozenLinear(down)),
        ),
        *norms,
        *(head_norms if config.has_qk_norm else (None, None)),
    )


def random_decoder(config: DecoderConfig, seed: int, dtype: torch.dtype) -> Decoder:
    numbers = Numbers(seed, dtype)
    embedding = numbers.of(VOCAB_SIZE, config.hidden_size)
    layers = tuple(random_layer(config, numbers) for _ in range(NUM_LAYERS))
    final = numbers.of(config.hidden_size)
    weights = DecoderWeights(embedding, layers, final, FrozenLinear(embedding), True)
    arena = AdapterArena(config, NUM_COLUMNS, dtype, CPU)
    for matrix in arena.matrices():
        matrix.copy_(numbers.of(*matrix.shape, scale=0.1))
    return Decoder(config, weights, arena)


def lend(layout: PackLayout, config: DecoderConfig) -> Loan:
    """Memory for one pack."""
    dtype = layout.spec.dtype
    num_blocks = 2 + layout.num_bytes // KVCache.bytes_per_block(config, PAGE_TOKENS, dtype)
    cache = KVCache(config, num_blocks, PAGE_TOKENS, dtype, CPU)
    return Loan(BlockPool(num_blocks, PAGE_TOKENS), cache, range(num_blocks))


def widened(pack: TrainPack) -> TrainPack:
    """A copy of the pack in float64."""
    copy = deepcopy(pack)
    copy.grad_out = copy.grad_out.double()
    for layer in copy.layers:
        layer.buffers = {name: buffer.double() for name, buffer in layer.buffers.items()}
    return copy


@each_dtype
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_every_unit_s_gradients_are_those_of_the_specification(
    dtype: torch.dtype, seed: int
) -> None:
    case = Case(seed)
    decoder, exact = case.decoder(dtype), case.decoder(torch.float64)
    pack = case.forward(decoder)
    assert CpuBackward.try_of(decoder) is not None
    assert CpuBackward.try_of(exact) is None

    want = case.backward(exact, widened(pack))
    got = case.backward(decoder, pack)

    for mine, theirs in zip(got, want, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert float((mine.double() - theirs).abs().max()) <= TOLERANCE[dtype] * scale


@each_dtype
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_a_second_thread_changes_no_bit(dtype: torch.dtype, seed: int) -> None:
    case = Case(seed)
    decoder = case.decoder(dtype)
    pack = case.forward(decoder)
    other = deepcopy(pack)

    alone = case.backward(decoder, pack)
    torch.set_num_threads(2)
    try:
        beside = case.backward(decoder, other)
    finally:
        torch.set_num_threads(1)

    assert all(starmap(torch.equal, zip(alone, beside, strict=True)))
