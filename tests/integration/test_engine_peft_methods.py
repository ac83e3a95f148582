"""Every PEFT method trains in the engine, is published, resumed and served beside the others."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch

import workers.peft_methods
from scheduler.domain.messages import CheckpointWritten
from tests.integration.engine_driver import TinyEngine, always, generate
from workers.adapter_file import read_adapter
from workers.peft_method import PEFT_METHODS

assert workers.peft_methods
PROMPT = [5, 6, 7, 8]
RATES = {"lora": 5e-3, "lora_xs": 2e-2, "svfit": 0.2}  # fewer numbers must go further


def trained(engine: TinyEngine, method: str) -> Path:
    """The published adapter of a job, in which it must have learned something."""
    data = engine.data("train", Random(1), num_examples=4)
    job = engine.job(
        method,
        data,
        method=method,
        n_epochs=12,
        learning_rate=RATES[method],
        lr_schedule="constant",
    )
    script = engine.run((always, [job]), (lambda s: s.has_ended(method), []))
    losses = [step.train_loss for step in script.steps(method)]
    assert losses[-1] < 0.9 * losses[0]
    return Path(script.of(CheckpointWritten)[-1].path) / "adapter"


@pytest.mark.parametrize("method", PEFT_METHODS.names())
def test_a_job_learns_and_only_what_is_trained_has_moved(tmp_path: Path, method: str) -> None:
    engine = TinyEngine(tmp_path)
    folder = trained(engine, method)
    still = engine.job(
        "still", tmp_path / "train.bin", method=method, n_epochs=1, learning_rate=1e-12
    )

    script = engine.run((always, [still]), (lambda s: s.has_ended("still"), []))

    before = read_adapter(Path(script.of(CheckpointWritten)[-1].path) / "adapter", engine.config)
    after = read_adapter(folder, engine.config)
    fixed = after.method.fixed_shapes()
    assert all(torch.equal(before.params[name], after.params[name]) for name in fixed)
    assert any(
        not torch.equal(before.params[name], after.params[name]) for name in after.method.shapes()
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["init_seed"] is None) == bool(fixed)


def test_adapters_of_all_methods_are_served_in_one_batch_as_alone(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    folders = [None, *(trained(engine, method) for method in PEFT_METHODS.names())]
    orders = [generate(f"r{i}", PROMPT, folder) for i, folder in enumerate(folders)]

    together = engine.run(
        (always, orders), (lambda s: all(s.is_answered(f"r{i}") for i in range(len(orders))), [])
    )
    alone = [
        engine.run((always, [order]), (lambda s, i=i: s.is_answered(f"r{i}"), [])).tokens(f"r{i}")
        for i, order in enumerate(orders)
    ]

    answers = [together.tokens(f"r{i}") for i in range(len(orders))]
    assert answers == alone
    assert all(answer != answers[0] for answer in answers[1:])
