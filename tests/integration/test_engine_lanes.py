"""Decode beside training on threads of its own: the same tokens, and the same losses."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import torch

from scheduler.domain.messages import JobStopped
from scheduler.policy.latency import ForwardShape, LatencyLaw, RowCosts
from tests.integration.engine_driver import BASE, Script, TinyEngine, always, ended, generate
from tests.unit.workers.tiny_models import VOCAB_SIZE
from workers.decoder_backward import DecoderBackward

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scheduler.domain.messages import ToEngine
    from scheduler.policy.pack_cursor import Unit
    from workers.backward_unit import BackwardUnit


class FreeLane(LatencyLaw):
    """A law that thinks nothing of lanes, so that every decode step has them."""

    def __init__(self) -> None:
        super().__init__(RowCosts((1,), (0.01,)), num_layers=3)
        self.num_units = 0

    def forward_ms(self, shape: ForwardShape) -> float:
        """Next to nothing, always."""
        return 0.01 if shape.num_rows else 0.0

    def unit_ms(self, unit: Unit, *, is_cold: bool = False) -> float:
        """Next to nothing, always."""
        del unit, is_cold
        return 0.002

    def observe_unit(self, unit: Unit, elapsed_ms: float, *, is_cold: bool = False) -> None:
        """Count instead of learning."""
        del unit, elapsed_ms, is_cold
        self.num_units += 1


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def run(engine: TinyEngine, law: LatencyLaw | None, orders: list[ToEngine]) -> Script:
    script = Script([(always, orders), (ended(*orders), [])])
    loop = engine.start(script)
    loop.hosts[BASE].scheduler.planner.beside = law
    engine.finish(loop, script)
    return script


@pytest.mark.usefixtures("two_threads")
def test_lanes_change_neither_tokens_nor_losses(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, tpot_ms=1000.0)
    random, free = Random(5), FreeLane()
    data = engine.data("train", random)
    prompts = [[random.randrange(VOCAB_SIZE) for _ in range(3 + i)] for i in range(6)]

    def orders(root: str) -> list[ToEngine]:
        requests = [generate(f"r{i}", p, max_tokens=60) for i, p in enumerate(prompts)]
        return [engine.job("job", data, root=root), *requests]

    turns = run(engine, None, orders("turns"))
    lanes = run(engine, free, orders("lanes"))

    assert free.num_units > 0
    for i in range(6):
        assert lanes.tokens(f"r{i}") == turns.tokens(f"r{i}")
    for mine, theirs in zip(lanes.steps("job"), turns.steps("job"), strict=True):
        assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)


@pytest.mark.usefixtures("two_threads")
def test_a_job_that_crashes_in_its_lane_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TinyEngine(tmp_path, tpot_ms=1000.0)
    data = engine.data("train", Random(5))
    requests = [generate(f"r{i}", [1 + i, 7], max_tokens=60) for i in range(6)]

    def crash(unit: BackwardUnit) -> None:
        raise ZeroDivisionError(f"layer {unit.layer}")

    monkeypatch.setattr(DecoderBackward, "run", lambda _self, unit: crash(unit))

    script = run(engine, FreeLane(), [engine.job("job", data), *requests])

    (stopped,) = script.of(JobStopped)
    assert (stopped.job_id, stopped.error_code) == ("job", "internal")
    assert all(len(script.tokens(f"r{i}")) == 60 for i in range(6))
