"""What freed K/V is worth to training: one capped pool, equal inference load, with and without.

    python -m benchmarks.kv_pool --out DIR [--quick]

The 80M model serves long prompts that come at a fixed rate, the same ones in every arm, while jobs
train; whole caches of the prompts in flight fill most of the pool. `roomy` is the control: whole
caches in a pool with room for everybody, so that what it gains over `whole` is memory's part, and
what a policy gains beyond it is that of shorter attention.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_model import BenchModel, make_bench_model
from benchmarks.closed_loop import Bench
from benchmarks.load import Load, StopRule
from benchmarks.machine import environment
from benchmarks.paced_callers import Arrivals, PacedCallers
from benchmarks.phase import PhaseResult, summary
from benchmarks.pool_watch import PoolWatch
from benchmarks.spread import median, rounded, spread
from scheduler.domain.request import KvPolicyChoice
from scheduler.policy.slack import SloTargets

ARRIVALS = Arrivals(interval_s=4.0, prompt_tokens=(2048, 3840), output_tokens=(128, 192))
LOAD = Load(num_streams=8, num_adapters=0)
NUM_JOBS = 2
TARGETS = SloTargets(ttft_ms=5000.0, tpot_ms=200.0)
CAPPED_TOKENS, ROOMY_TOKENS = 20_480, 65_536
PHASE_S, QUICK_PHASE_S, LEARNING_S = 30.0, 12.0, 4.0
NUM_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy and a pool."""

    pool_tokens: int
    policy: KvPolicyChoice | None = None


def compressed(name: str) -> Arm:
    """A policy that keeps a sixth of an average prompt, in the capped pool."""
    return Arm(CAPPED_TOKENS, KvPolicyChoice(type=name, options={"budget": 512, "window": 32}))


ARMS = {
    "whole": Arm(CAPPED_TOKENS),
    "snapkv": compressed("snapkv"),
    "ems": compressed("ems"),
    "roomy": Arm(ROOMY_TOKENS),
}


@dataclass(frozen=True, slots=True)
class ArmRound:
    """One phase of an arm."""

    phase: PhaseResult
    pool: dict[str, Any]


class PoolBench(Bench):
    """An engine with a pool of its own, which is watched."""

    def __init__(self, model: BenchModel, arrivals: Arrivals, pool_tokens: int) -> None:
        self.callers = PacedCallers(arrivals)
        super().__init__(model, self.callers, kv_cache_tokens=pool_tokens)
        self.set_targets(TARGETS)
        self.watch = PoolWatch(self.host)

    def drive(self, is_over: Callable[[], bool]) -> None:
        """See Bench; looks at the pool after each turn."""

        def watched() -> bool:
            self.watch.look()
            return is_over()

        super().drive(watched)

    def run_arm(self, arm: Arm, seconds: float) -> ArmRound:
        """Serve and train under an arm's policy."""
        self.callers.kv_policy = arm.policy
        jobs = self.start(LOAD, NUM_JOBS)
        self.watch.begin()
        phase = self.measure(StopRule(seconds))
        pool = self.watch.figures()
        self.stop(jobs)
        return ArmRound(phase, pool)


def run_rounds(model: BenchModel, rounds: int, seconds: float) -> dict[str, Any]:
    """All arms in turn, `rounds` times."""
    benches = {
        tokens: PoolBench(model, ARRIVALS, tokens) for tokens in (CAPPED_TOKENS, ROOMY_TOKENS)
    }
    for arm in ARMS.values():
        benches[arm.pool_tokens].run_arm(arm, LEARNING_S)
    runs: dict[str, list[ArmRound]] = {name: [] for name in ARMS}
    for _ in range(rounds):
        for name, arm in ARMS.items():
            runs[name].append(benches[arm.pool_tokens].run_arm(arm, seconds))
            print(render(name, arm_figures(runs[name][-1:], runs["whole"][-1:])), flush=True)
    return {name: arm_figures(done, runs["whole"]) for name, done in runs.items()}


def arm_figures(rounds: list[ArmRound], whole: list[ArmRound]) -> dict[str, Any]:
    """An arm's rates and the pool's state, and its training beside that of whole caches."""
    phases = [each.phase for each in rounds]
    gains = [
        each.phase.train_tokens_per_s / other.phase.train_tokens_per_s
        for each, other in zip(rounds, whole, strict=True)
        if other.phase.train_tokens_per_s
    ]
    return summary(phases) | {
        "train_over_whole": spread(gains),
        "answered": sum(len(phase.requests) for phase in phases),
        "pool": [each.pool for each in rounds],
    }


def render(name: str, figures: dict[str, Any]) -> str:
    """One line of the table."""
    pools = figures["pool"]
    means = {
        key: median(pool[key] for pool in pools)
        for key in ("kv_mib", "training_mib", "examples_in_flight", "running", "waiting")
    }
    levels = {
        level: median(pool["level_shares"][level] for pool in pools)
        for level in pools[0]["level_shares"]
    }
    counts = {
        key: sum(pool[key] for pool in pools) for key in ("preemptions", "packs_started_over")
    }
    return (
        f"{name:7} train {figures['train_tokens_per_s']['median']:6.0f}/s "
        f"({figures['train_over_whole']['median']:.2f}x) "
        f"output {figures['output_tokens_per_s']['median']:5.1f}/s "
        f"TTFT {figures['ttft_ms']['p50']:6.0f} TPOT {figures['tpot_ms']['p50']:5.0f} ms  "
        + " ".join(f"{key} {value:.1f}" for key, value in means.items())
        + "  "
        + " ".join(f"{level} {100 * part:.0f}%" for level, part in levels.items())
        + "  "
        + " ".join(f"{key} {value}" for key, value in counts.items())
    )


def main() -> None:
    """Run all arms and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    rounds, seconds = (1, QUICK_PHASE_S) if arguments.quick else (NUM_ROUNDS, PHASE_S)
    machine = environment("")
    with tempfile.TemporaryDirectory() as folder:
        arms = run_rounds(make_bench_model(Path(folder), 0), rounds, seconds)
    for name, figures in arms.items():
        print(render(name, figures))
    machine |= {"load_after": os.getloadavg()[0]}
    suffix = "-quick" if arguments.quick else ""
    name = f"kv-pool-{machine['date']}-{machine['machine']}{suffix}.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = rounded({"environment": machine, "seconds": seconds, "arms": arms})
    (arguments.out / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
