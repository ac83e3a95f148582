"""Padded steps of compressed and uniform sequences on Triton's kernels, as a graph runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random

import pytest
import torch

import workers.kv_policies  # noqa: F401
from scheduler.domain.plan import Span
from tests.unit.workers.packed_run import PackedRun, compress_heads, make_resident, random_lora
from tests.unit.workers.tiny_models import TinyModel, make_model
from workers.adapter_pool import AdapterPool
from workers.batch_builder import BatchBuilder, InferenceRow, placement
from workers.held_slots import HeldSlots
from workers.kernels.device_kernels import KERNELS, gpu_kernels
from workers.kv_policy import KV_POLICIES
from workers.kv_watch import KvWatch
from workers.padded_step import PaddedStep, StepInputs, StepOutputs, StepShape
from workers.step_graphs import shape_of

STEPS = 4  # every sequence comes to a new page
TOLERANCE = 1e-10


@contextmanager
def interpreted() -> Iterator[None]:
    """CPU tensors take the GPU's kernels; else, in float64, plain torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KERNELS, "cpu", gpu_kernels)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    with interpreted():
        return make_model("llama", tmp_path_factory.mktemp("model"), torch.float64)


class Decoding:
    """Sequences in the middle of their answers, some compressed, and one of each has an adapter."""

    def __init__(self, model: TinyModel, seed: int, are_compressed: list[bool]) -> None:
        decoder = model.decoder
        self.random = Random(seed)
        self.run = PackedRun(decoder, self.random)
        self.cache = self.run.runner.cache
        pool = AdapterPool(decoder.arena, max_rank=16)
        lora = random_lora(decoder.config, 3, 5, ("q_proj", "down_proj"), torch.float64)
        columns = make_resident(pool, f"a{seed}", *lora)
        for place, is_compressed in enumerate(are_compressed):
            length = self.random.randint(7, 40)
            token_ids = [self.random.randrange(90) for _ in range(length)]
            stream = self.run.add(token_ids, columns if place % 2 else None)
            more = self.run.free[-2:]
            del self.run.free[-2:]
            stream.sequence.block_table += more
            if is_compressed:
                compress_heads(stream, decoder.config, self.random)
        self.cache.storage[1:].normal_(generator=torch.Generator().manual_seed(seed))
        self.step = PaddedStep(decoder, self.cache, self.run.runner.newest_draw)

    def padded(self, inputs: StepInputs, rows: list[InferenceRow], shape: StepShape) -> StepOutputs:
        with interpreted():
            inputs.fill(*self.step.numbers(rows, shape.bucket))
            return self.step.run(inputs, shape)

    def rows(
        self, watch: KvWatch | None = None, counts: Sequence[int] = (1, 1, 1, 1)
    ) -> list[InferenceRow]:
        """The last tokens of every sequence; the first is watched."""
        rows = []
        for place, (stream, count) in enumerate(zip(self.run.streams, counts, strict=False)):
            span = Span(stream.sequence.id, len(stream.sequence.token_ids) - count, count)
            watched = watch if place == 0 else None
            rows.append(InferenceRow(span, stream.sequence, stream.columns, watched))
        return sorted(rows, key=placement)

    def eager(self, rows: list[InferenceRow]) -> torch.Tensor:
        decoder = self.run.runner.decoder
        builder = BatchBuilder(decoder, self.cache)
        for row in rows:
            builder.add_row(row)
        return decoder.logits(decoder.forward(builder.build()))

    def grow(self) -> None:
        for stream in self.run.streams:
            stream.sequence.token_ids.append(self.random.randrange(90))


@pytest.mark.parametrize(
    "are_compressed", [[True, False, True], [True], [False, True, True, False]]
)
def test_steps_of_both_layouts_give_the_logits_of_eager_ones(
    model: TinyModel, are_compressed: list[bool]
) -> None:
    decoding = Decoding(model, len(are_compressed), are_compressed)
    shape = StepShape(4, rank=16, has_heads=True)
    inputs = decoding.step.inputs(shape)

    for _ in range(STEPS):
        rows = decoding.rows()
        want = decoding.eager(rows)
        before = decoding.cache.storage.clone()
        got = decoding.padded(inputs, rows, shape).logits_BV

        assert torch.allclose(got[: len(rows)], want, rtol=0, atol=TOLERANCE)
        assert torch.isfinite(got).all()
        assert torch.allclose(decoding.cache.storage, before, rtol=0, atol=TOLERANCE)
        assert not decoding.cache.storage[0].any()
        decoding.grow()


@pytest.mark.parametrize("most", [1, 4])
def test_chunks_of_both_layouts_give_what_plain_torch_gives(model: TinyModel, most: int) -> None:
    decoding = Decoding(model, most, [True, False, True, True])
    rows = decoding.rows(counts=(most, 2 if most > 1 else 1, 1, most))

    want = decoding.eager(rows)
    before = decoding.cache.storage.clone()
    with interpreted():
        got = decoding.eager(rows)

    assert torch.allclose(got, want, rtol=0, atol=TOLERANCE)
    assert torch.allclose(decoding.cache.storage, before, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["snapkv", "h2o"])
def test_a_policy_sees_the_queries_of_padded_steps(model: TinyModel, name: str) -> None:
    config = {"budget": 8, "window": 3, "num_sinks": 1}
    policy = KV_POLICIES[name](KV_POLICIES[name].Config.model_validate(config))
    decoding = Decoding(model, 7, [False, True])
    start = decoding.rows()[0].span.start
    watches = [KvWatch(policy, model.decoder.config.num_layers, 64, start) for _ in range(2)]
    shape = StepShape(2, rank=16, has_heads=True, is_watched=True)
    inputs = decoding.step.inputs(shape)

    for _ in range(STEPS):
        decoding.eager(decoding.rows(watches[0]))
        rows = decoding.rows(watches[1])
        assert shape_of(rows) == shape
        outputs = decoding.padded(inputs, rows, shape)
        decoding.step.show_queries(rows, outputs.queries)
        decoding.grow()

    sequence = decoding.run.streams[0].sequence
    held = HeldSlots.of(sequence, start + STEPS, decoding.cache)
    for layer, (eager, padded) in enumerate(zip(*(w.layers for w in watches), strict=True)):
        want = eager.observe(held.read(layer))
        with interpreted():
            got = padded.observe(held.read(layer))
        assert torch.allclose(got.queries, want.queries, rtol=0, atol=TOLERANCE)
        assert torch.allclose(got.column_sums.float(), want.column_sums, atol=1e-6)
        assert bool(got.column_sums.any()) == (name == "h2o")
