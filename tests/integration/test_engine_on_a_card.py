"""The engine on Triton's kernels, with captured steps that are read late: as on the CPU's own."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.request import KvPolicyChoice
from tests.integration.engine_driver import (
    BASE,
    Script,
    TinyEngine,
    always,
    assert_nothing_is_held,
    generate,
)
from tests.integration.pretended_card import pretended_card
from tests.unit.workers.tiny_models import VOCAB_SIZE
from workers.model import MODULE_PATHS

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import ToEngine

__all__ = ["pretended_card"]
NAMES = ("plain", "adapted", "sampled", "compressed")


def tiny_engine(folder: Path, training_memory_bytes: int = 1 << 16) -> TinyEngine:
    return TinyEngine(
        folder,
        family="llama",
        max_num_sequences=2,
        max_batched_tokens=32,
        kv_cache_tokens=1024,
        max_jobs=1,
        training_memory_bytes=training_memory_bytes,
        max_rank=16,
    )


def orders(engine: TinyEngine, root: str) -> list[ToEngine]:
    """A job, and one request for each way through a step."""
    random = Random(7)
    prompts = [[random.randrange(VOCAB_SIZE) for _ in range(9 + i)] for i in range(4)]
    snapkv = KvPolicyChoice(type="snapkv", options={"budget": 8, "window": 4})
    return [
        engine.job("job", engine.data("train", random, num_examples=4), root=root, n_epochs=1),
        generate("plain", prompts[0]),
        generate("adapted", prompts[1], engine.adapter("a", 4, tuple(MODULE_PATHS))),
        generate("sampled", prompts[2], temperature=1.0, seed=3, num_logprobs=2),
        generate("compressed", prompts[3], kv_policy=snapkv),
    ]


def play(engine: TinyEngine, root: str) -> Script:
    return engine.run(
        (always, orders(engine, root)),
        (lambda s: s.has_ended("job") and all(map(s.is_answered, NAMES)), []),
    )


def test_it_serves_and_trains_as_on_the_cpu(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    engine = tiny_engine(tmp_path)
    on_cpu = play(engine, "cpu")
    request.getfixturevalue("pretended_card")

    on_card = play(engine, "card")

    for name in NAMES:
        assert on_card.tokens(name) == on_cpu.tokens(name)
    assert on_card.frames("compressed")[-1].num_dropped_tokens > 0
    for ours, theirs in zip(on_card.steps("job"), on_cpu.steps("job"), strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)


@pytest.mark.usefixtures("pretended_card")
def test_a_rehearsal_leaves_nothing_behind(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path)
    script = Script([])

    loop = engine.start(script)

    host = loop.hosts[BASE]
    assert host.runner.graphs is not None
    assert_nothing_is_held(host)
    assert all(not matrix.any() for matrix in host.adapters.arena.matrices())
    assert host.trainer.trained_tokens == 0
    assert not script.sent
    captured = set(host.runner.graphs._steps)
    assert {(shape.bucket, shape.rank) for shape in captured} == {
        (bucket, rank) for bucket in (1, 2) for rank in (0, 16)
    }


@pytest.mark.usefixtures("pretended_card")
def test_where_nothing_can_train_only_serving_is_rehearsed(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path, training_memory_bytes=1)

    loop = engine.start(Script([]))

    assert_nothing_is_held(loop.hosts[BASE])
