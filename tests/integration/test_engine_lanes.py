"""Decode beside training on threads of its own: the same tokens, and the same losses."""

from __future__ import annotations

import itertools
from random import Random
from typing import TYPE_CHECKING

import pytest
import torch

from scheduler.domain.messages import JobStopped, StopJob
from scheduler.policy.latency import ForwardShape, LatencyLaw, RowCosts
from tests.integration.engine_driver import BASE, Script, TinyEngine, always, ended, generate
from tests.unit.workers.fake_cuda import FakeCuda
from tests.unit.workers.tiny_models import CPU, VOCAB_SIZE
from workers.decoder_backward import DecoderBackward
from workers.lane_device import StreamLane, ThreadLane
from workers.side_lane import SideLane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from scheduler.domain.messages import ToEngine
    from scheduler.policy.pack_cursor import Unit
    from workers.backward_unit import BackwardUnit
    from workers.lane_device import LaneDevice


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


def run(
    engine: TinyEngine,
    law: LatencyLaw | None,
    orders: list[ToEngine],
    *,
    later: Sequence[tuple[Callable[[Script], bool], list[ToEngine]]] = (),
    device: LaneDevice | None = None,
) -> Script:
    script = Script([(always, orders), *later, (ended(*orders), [])])
    loop = engine.start(script)
    host = loop.hosts[BASE]
    host.scheduler.planner.beside = law
    if device is not None:
        host.trainer.side = SideLane(device)
    engine.finish(loop, script)
    return script


def assert_same_curve(mine: Script, theirs: Script, job_id: str) -> None:
    for step, other in zip(mine.steps(job_id), theirs.steps(job_id), strict=True):
        assert step.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert step.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("device", ["threads", "streams"])
def test_lanes_change_neither_tokens_nor_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    engine = TinyEngine(tmp_path, tpot_ms=1000.0)
    random, free = Random(5), FreeLane()
    data = engine.data("train", random)
    prompts = [[random.randrange(VOCAB_SIZE) for _ in range(3 + i)] for i in range(6)]

    def orders(root: str) -> list[ToEngine]:
        requests = [generate(f"r{i}", p, max_tokens=60) for i, p in enumerate(prompts)]
        return [engine.job("job", data, root=root), *requests]

    turns = run(engine, None, orders("turns"))
    diary = FakeCuda().install(monkeypatch)
    shared = StreamLane(CPU) if device == "streams" else ThreadLane()
    lanes = run(engine, free, orders("lanes"), device=shared)

    assert free.num_units > 0
    assert bool(diary) == (device == "streams")
    for i in range(6):
        assert lanes.tokens(f"r{i}") == turns.tokens(f"r{i}")
    assert_same_curve(lanes, turns, "job")


@pytest.mark.usefixtures("two_threads")
def test_a_job_that_crashes_in_its_lane_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TinyEngine(tmp_path, tpot_ms=1000.0)
    data = engine.data("train", Random(5))
    requests = [generate(f"r{i}", [1 + i, 7], max_tokens=60) for i in range(6)]
    other = engine.job("other", data, method_config={"rank": 3})
    alone = run(engine, FreeLane(), [other, *requests])
    backward, units = DecoderBackward.run, itertools.count()

    def crash(self: DecoderBackward, unit: BackwardUnit) -> None:
        if unit.columns.rank == 4 and next(units) >= 5:
            raise ZeroDivisionError(f"layer {unit.layer}")
        backward(self, unit)

    monkeypatch.setattr(DecoderBackward, "run", crash)

    script = run(engine, FreeLane(), [engine.job("job", data), other, *requests])

    (stopped,) = script.of(JobStopped)
    assert (stopped.job_id, stopped.error_code) == ("job", "internal")
    assert all(script.tokens(f"r{i}") == alone.tokens(f"r{i}") for i in range(6))
    assert_same_curve(script, alone, "other")


@pytest.mark.usefixtures("two_threads")
def test_a_job_that_is_stopped_among_lanes_changes_nobody_else(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, tpot_ms=1000.0)
    data = engine.data("train", Random(5))
    requests = [generate(f"r{i}", [1 + i, 7], max_tokens=60) for i in range(6)]
    other = engine.job("other", data, root="other")
    alone = run(engine, FreeLane(), [other, *requests])
    stops: list[ToEngine] = [StopJob(job_id="job", checkpoint=False)]

    script = run(
        engine,
        FreeLane(),
        [engine.job("job", data), other, *requests],
        later=[(lambda s: bool(s.steps("job")), stops)],
    )

    assert [stopped.job_id for stopped in script.of(JobStopped)] == ["job"]
    assert all(script.tokens(f"r{i}") == alone.tokens(f"r{i}") for i in range(6))
    assert_same_curve(script, alone, "other")
