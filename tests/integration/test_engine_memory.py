"""One pool for K/V and training: training takes what is free, and gives it back first."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.messages import JobStopped
from tests.integration.engine_driver import (
    BASE,
    Script,
    TinyEngine,
    always,
    ended,
    generate,
    prompt,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scheduler.domain.messages import Generate, ToEngine

NUM_WAVES = 4
SETTINGS = {"kv_cache_tokens": 640, "tpot_ms": 5000.0, "ttft_ms": 5000.0}


def wave(number: int) -> list[Generate]:
    """Requests that together need most of the pool."""
    return [generate(f"w{number}-{i}", prompt(4 * number + i, 90), max_tokens=30) for i in range(4)]


def after_step(count: int) -> Callable[[Script], bool]:
    """Whether the job has made so many steps, and nobody waits for an answer."""
    return lambda s: len(s.steps("job")) >= count


def run(engine: TinyEngine, *, trains: bool) -> tuple[Script, int, int]:
    """The waves, a step of the job apart: what came back, recalls and preemptions."""
    orders: list[ToEngine] = []
    if trains:
        data = engine.data("train", Random(3), num_examples=10)
        orders = [engine.job("job", data, n_epochs=NUM_WAVES, batch_size=10, learning_rate=1e-3)]
    script = Script([(always, orders)])
    for number in range(NUM_WAVES):
        script.entries.append((after_step(number) if trains else always, [*wave(number)]))
    waves = [order for number in range(NUM_WAVES) for order in wave(number)]
    script.entries.append((ended(*orders, *waves), []))
    loop = engine.start(script)
    host = loop.hosts[BASE]
    host.runner.cache.storage[1:] = float("nan")
    engine.finish(loop, script)
    return script, host.trainer.num_recalls, host.scheduler.num_preemptions


def test_requests_take_back_what_training_borrowed_and_neither_feels_it(tmp_path: Path) -> None:
    tight = TinyEngine(tmp_path, **SETTINGS)
    roomy = TinyEngine(tmp_path, **SETTINGS | {"kv_cache_tokens": 8192})

    both, num_recalls, num_preemptions = run(tight, trains=True)
    calm, num_calm_recalls, _ = run(roomy, trains=True)
    served, _, _ = run(tight, trains=False)

    assert num_recalls > 0 == num_calm_recalls
    assert num_preemptions == 0
    for number in range(NUM_WAVES):
        for order in wave(number):
            name = order.request.request_id
            assert both.tokens(name) == served.tokens(name)
    losses = [step.train_loss for step in both.steps("job")]
    assert losses == pytest.approx([step.train_loss for step in calm.steps("job")], rel=1e-3)
    assert len(losses) == NUM_WAVES


def test_a_job_whose_examples_cannot_fit_is_refused_at_once(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, training_memory_bytes=10_000)
    order = engine.job("job", engine.data("train", Random(3)))

    script = engine.complete(order)

    (stopped,) = script.of(JobStopped)
    assert stopped.error is not None
    assert "does not fit into this worker's memory for training" in stopped.error
