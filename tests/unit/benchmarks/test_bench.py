"""The benchmark's own machinery on a tiny model: that it runs and counts, not what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks.closed_loop
from benchmarks.activation_bytes import level_figures
from benchmarks.bench_model import bench_config, make_bench_model
from benchmarks.closed_loop import Bench
from benchmarks.first_token import measure_first_tokens
from benchmarks.load import Load, StopRule
from benchmarks.prefix import NUM_CALLERS, SHORT_TOKENS, measure_round
from benchmarks.step_parts import CALLERS, KERNELS, REST, StepParts
from scheduler.policy.slack import SloTargets
from workers.activations import SaveLevel


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root: Path = tmp_path_factory.mktemp("bench")
    config = bench_config(num_layers=2, hidden_size=64, intermediate_size=64)
    return Bench(make_bench_model(root, num_adapters=2, rank=4, config=config))


@pytest.fixture(autouse=True)
def _warm_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.closed_loop, "WARM_S", 0.05)


def test_a_phase_serves_and_trains_and_leaves_nothing_behind(bench: Bench) -> None:
    bench.set_targets(SloTargets(500.0, 1.0))  # training takes little

    result = bench.run(Load(2, 2), 1, StopRule(0.1, requests=1, max_s=20))

    assert result.output_tokens_per_s > 0
    assert result.seconds >= 0.1
    assert result.requests
    assert not bench.host.scheduler.running
    assert not bench.host.scheduler.waiting
    assert not bench.host.trainer.active


def test_steps_belong_to_the_phase_that_ran_them(bench: Bench) -> None:
    first = bench.run(Load(1, 0), 0, StopRule(0.05))
    counted = len(first.steps)

    bench.run(None, 1, StopRule(0.05))

    assert len(first.steps) == counted
    assert all(step.forward_tokens == 0 for step in first.steps)


def test_every_part_of_a_step_is_timed_and_the_engine_left_as_it_was(bench: Bench) -> None:
    jobs = bench.start(Load(2, 2), 0)
    with StepParts(bench) as parts:
        bench.measure(StopRule(0.2))
    bench.stop(jobs)

    timed = {part for turn in parts.turns for part in turn}
    assert {"schedule", "commit", "observe", "emit", "meter", "batch", REST} <= timed
    assert {KERNELS, CALLERS} <= timed
    assert parts.figures()["overhead_ms"]["p50"] > 0
    assert "turn" not in vars(bench.engine)
    assert "schedule" not in vars(bench.host.scheduler)


def test_lone_requests_are_answered_with_and_without_training(bench: Bench) -> None:
    figures = measure_first_tokens(bench, 2)

    assert figures["alone_ms"]["count"] == figures["into_training_ms"]["count"] == 2
    assert figures["alone_ms"]["p50"] > 0


def test_a_prompt_that_comes_again_is_computed_again_unless_that_is_measured(bench: Bench) -> None:
    cached = Bench(bench.model, prefix_caching=True)

    times = [measure_round(engine, 0) for engine in (bench, cached)]

    assert all(ms > 0 for round_times in times for ms in round_times.values())
    assert bench.host.scheduler.prefixes.num_hits == 0
    assert cached.host.scheduler.prefixes.num_hits >= (NUM_CALLERS - 1) * (SHORT_TOKENS // 32 * 32)


@pytest.mark.parametrize("level", list(SaveLevel))
def test_a_pack_holds_what_its_save_level_specifies(bench: Bench, level: SaveLevel) -> None:
    figures = level_figures(bench, level)

    assert figures["kept"] == figures["specified"]
    assert figures["peak"] > figures["kept"]
