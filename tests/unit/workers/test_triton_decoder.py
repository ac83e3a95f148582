"""A decoder on Triton's kernels serves and trains as plain torch does, in one packed batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from random import Random

import pytest
import torch

from scheduler.domain.plan import Span
from tests.unit.workers import test_training_gradients as gradients
from tests.unit.workers.packed_run import PackedRun, make_resident, random_lora, random_params
from tests.unit.workers.train_bench import Bench, random_examples
from workers.activations import SaveLevel
from workers.adapter_pool import AdapterPool
from workers.batch_builder import BatchBuilder, InferenceRow
from workers.kernels.device_kernels import KERNELS, gpu_kernels
from workers.model import MODULE_PATHS
from workers.pack_placement import TrainerLimits
from workers.padded_step import PaddedStep, StepShape
from workers.peft_method import PEFT_METHODS


@pytest.fixture
def _triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CPU tensors take the GPU's kernels, interpreted."""
    monkeypatch.setitem(KERNELS, "cpu", gpu_kernels)
    gradients.model.cache_clear()
    yield
    gradients.model.cache_clear()


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(
    ("family", "level", "method"),
    [
        ("llama", SaveLevel.FULL, "lora"),
        ("mistral", SaveLevel.INPUTS, "svfit"),
        ("qwen3", SaveLevel.WINDOW_OUTER, "lora_xs"),
    ],
)
def test_gradients_beside_inference_are_those_of_autograd(
    family: str, level: SaveLevel, method: str
) -> None:
    random = Random(family)
    bench = Bench(gradients.model(family).decoder, random, level)
    served = random_lora(gradients.model(family).decoder.config, 9, 5, ("q_proj", "down_proj"))
    columns = make_resident(bench.pool, "served", *served)
    bench.run.add([random.randrange(90) for _ in range(7)], columns)
    bench.run.add([random.randrange(90) for _ in range(9)], None)
    bench.limit(TrainerLimits(max_jobs=4, range_tokens=30), level)
    examples = random_examples(random)[:1]
    bench.start_job(4, tuple(MODULE_PATHS), examples, method)

    bench.finish()

    for job in bench.jobs:
        gradients.assert_same(job.gradient, gradients.autograd(family, job))
    for stream in bench.run.streams:
        assert torch.isfinite(torch.cat(stream.logits)).all()


@pytest.mark.usefixtures("_triton")
def test_a_padded_step_gives_the_logits_of_a_plain_one() -> None:
    decoder = gradients.model("mistral").decoder
    run, pool = PackedRun(decoder, Random(1)), AdapterPool(decoder.arena, max_rank=16)
    lora = random_lora(decoder.config, 3, 5, ("q_proj", "down_proj"), torch.float64)
    columns = make_resident(pool, "a", *lora)
    matrices = PEFT_METHODS["lora_xs"]
    middles = matrices(matrices.Config.model_validate({"rank": 3}), decoder.config)
    other = make_resident(pool, "b", middles, random_params(middles, 4, torch.float64))
    rows = []
    for place, own in enumerate((None, columns, columns, other)):
        sequence = run.add([5 + place] * (6 + place), own).sequence
        rows.append(InferenceRow(Span(sequence.id, 5 + place, 1), sequence, own))
    cache = run.runner.cache
    cache.storage.normal_()
    builder = BatchBuilder(decoder, cache)
    for row in rows:
        builder.add_row(row)
    want = decoder.logits(decoder.forward(builder.build()))
    before = cache.storage.clone()
    step = PaddedStep(decoder, cache, run.runner.newest_draw)
    shape = StepShape(8, rank=16, has_middles=True)
    inputs = step.inputs(shape)

    inputs.fill(*step.numbers(rows, shape.bucket))
    got = step.run(inputs, shape).logits_BV

    assert torch.allclose(got[:4], want, atol=1e-10)
    assert torch.allclose(cache.storage, before, atol=1e-10)


def test_an_engine_on_the_cpu_imports_no_triton() -> None:
    program = "import sys, workers.engine; print('triton' in sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "False\n"
