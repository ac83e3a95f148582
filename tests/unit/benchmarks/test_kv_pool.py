"""The pool's benchmark on a tiny model: equal load in every phase, and what the pool holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import benchmarks.closed_loop
from benchmarks.bench_model import bench_config, make_bench_model
from benchmarks.kv_pool import PoolBench, arm_figures, render
from benchmarks.load import Load
from benchmarks.paced_callers import Arrivals, PacedCallers
from scheduler.domain.messages import Generate
from scheduler.domain.request import KvPolicyChoice

if TYPE_CHECKING:
    from pathlib import Path

STREAMS = Load(num_streams=6, num_adapters=0)


def arrivals(interval_s: float) -> Arrivals:
    return Arrivals(interval_s, prompt_tokens=(100, 200), output_tokens=(4, 8))


def sent(callers: PacedCallers, num_answers: int) -> list[tuple[int, ...]]:
    """Prompts of what is sent until so many answers came."""
    callers.begin(STREAMS)
    orders = callers.poll(0.0)
    for _ in range(num_answers):
        callers.ask_again()
    orders += callers.poll(0.0)
    return [order.request.prompt_token_ids for order in orders if isinstance(order, Generate)]


def test_every_phase_offers_the_same_requests() -> None:
    callers = PacedCallers(arrivals(0.0))

    first, second = sent(callers, 3), sent(callers, 3)

    assert first == second
    assert len(set(first)) == len(first) == 6 + 3


def test_a_request_waits_for_its_turn_and_for_somebody_free() -> None:
    assert len(sent(PacedCallers(arrivals(1e6)), 3)) == 6
    assert len(sent(PacedCallers(arrivals(0.0)), 0)) == 6
    assert len(sent(PacedCallers(arrivals(0.0)), 1)) == 6 + 1


def test_a_policys_arm_holds_less_of_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks.closed_loop, "WARM_S", 0.05)
    config = bench_config(num_layers=2, hidden_size=64, intermediate_size=64)
    model = make_bench_model(tmp_path, num_adapters=0, config=config)
    bench = PoolBench(model, arrivals(0.02), 16_384)
    policy = KvPolicyChoice(type="streaming", options={"budget": 40, "window": 8})

    whole = bench.run_arm(None, STREAMS, 0.5)
    compressed = bench.run_arm(policy, STREAMS, 0.5)

    for arm in (whole, compressed):
        assert arm.phase.output_tokens_per_s > 0
        assert arm.pool["training_mib"] > 0
        assert sum(arm.pool["level_shares"].values()) == pytest.approx(1)
    assert 0 < compressed.pool["kv_mib"] < whole.pool["kv_mib"]
    assert "1.00x" in render("whole", arm_figures([whole], [whole]))
