"""What freed K/V is worth to training: one capped pool, equal inference load, with and without.

    python -m benchmarks.kv_pool --out DIR [--quick]

The 80M model serves long prompts that come at a fixed rate, the same ones in every arm, while a job
trains; whole caches of the prompts in flight fill most of the pool. `roomy` is the control: whole
caches in a pool with room for everybody, so that what it gains over `whole` is memory's part, and
what a policy gains beyond it is that of shorter attention.

The rate is half of what the machine answers when it does nothing else, the TPOT target twice what
it then keeps: by Little's law all callers are in flight.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_model import BenchModel, make_bench_model
from benchmarks.closed_loop import Bench
from benchmarks.load import Load, StopRule
from benchmarks.paced_callers import Arrivals, PacedCallers
from benchmarks.phase import PhaseResult, summary
from benchmarks.pool_watch import PoolWatch, WatchedTraining
from benchmarks.result_file import ResultFile
from benchmarks.spread import median, spread
from scheduler.domain.request import KvPolicyChoice
from scheduler.policy.slack import SloTargets

TTFT_MS = 1e6  # whoever waits for memory waits
LOAD_SHARE = 0.5  # of the greatest rate
CAPPED, ROOMY = "capped", "roomy"


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes and durations.

    Attributes:
        prompt_tokens, output_tokens: shortest and longest of a request.
        pool_tokens: of the capped and of the roomy pool.
        budget: tokens that policies keep of a prompt.
    """

    num_streams: int
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    pool_tokens: dict[str, int]
    budget: int
    rounds: int
    seconds: float

    @property
    def load(self) -> Load:
        """All callers, without adapters."""
        return Load(self.num_streams, 0)

    def arrivals(self, interval_s: float) -> Arrivals:
        """Its requests, so far apart."""
        return Arrivals(interval_s, self.prompt_tokens, self.output_tokens)

    def arms(self) -> dict[str, Arm]:
        """Whole caches, policies, and the control."""
        options = {"budget": self.budget, "window": 32}
        policies = {
            name: Arm(CAPPED, KvPolicyChoice(type=name, options=options))
            for name in ("snapkv", "ems")
        }
        return {"whole": Arm(CAPPED), **policies, "roomy": Arm(ROOMY)}


@dataclass(frozen=True, slots=True)
class Arm:
    """A pool and a policy."""

    pool: str
    policy: KvPolicyChoice | None = None


FULL = Plan(8, (2048, 3584), (96, 160), {CAPPED: 20_480, ROOMY: 49_152}, 512, 2, 30.0)
QUICK = Plan(4, (1536, 2560), (48, 80), {CAPPED: 9_216, ROOMY: 32_768}, 256, 2, 25.0)


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
        self.watch = PoolWatch(self.host)
        self.host.scheduler.training = WatchedTraining(self.host.trainer, self.watch)

    def run_arm(self, policy: KvPolicyChoice | None, load: Load, seconds: float) -> ArmRound:
        """Serve under a policy, and train."""
        self.callers.kv_policy = policy
        jobs = self.start(load, 1)
        self.watch.begin()
        phase = self.measure(StopRule(seconds))
        pool = self.watch.figures()
        self.stop(jobs)
        return ArmRound(phase, pool)


class PoolRounds:
    """All arms of a plan, in turn."""

    def __init__(self, model: BenchModel, plan: Plan) -> None:
        self.plan = plan
        self.benches = {
            name: PoolBench(model, plan.arrivals(0.0), tokens)
            for name, tokens in plan.pool_tokens.items()
        }
        self.load = self._calibrate()

    def _calibrate(self) -> dict[str, float]:
        """Set rate and target by what inference alone gives without pauses; what they are."""
        stop = StopRule(self.plan.seconds / 2, requests=self.plan.num_streams, max_s=90.0)
        alone = self.benches[ROOMY].run(self.plan.load, 0, stop)
        per_request = sum(self.plan.output_tokens) / 2
        interval_s = per_request / alone.output_tokens_per_s / LOAD_SHARE
        tpot_ms = median(alone.tpot_ms) / LOAD_SHARE
        for bench in self.benches.values():
            bench.callers.arrivals = self.plan.arrivals(interval_s)
            bench.set_targets(SloTargets(TTFT_MS, tpot_ms))
        return {"interval_s": interval_s, "tpot_target_ms": tpot_ms}

    def run(self) -> dict[str, Any]:
        """Figures by arm."""
        runs: dict[str, list[ArmRound]] = defaultdict(list)
        for _ in range(self.plan.rounds):
            for name, arm in self.plan.arms().items():
                bench = self.benches[arm.pool]
                runs[name].append(bench.run_arm(arm.policy, self.plan.load, self.plan.seconds))
                print(render(name, arm_figures(runs[name][-1:], runs["whole"][-1:])), flush=True)
        return {name: arm_figures(rounds, runs["whole"]) for name, rounds in runs.items()}


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
    results = ResultFile(arguments.out, "kv-pool", "quick" if arguments.quick else "")
    with tempfile.TemporaryDirectory() as folder:
        rounds = PoolRounds(make_bench_model(Path(folder), 0), QUICK if arguments.quick else FULL)
        arms = rounds.run()
    for name, figures in arms.items():
        print(render(name, figures))
    results.add({"plan": asdict(rounds.plan), "load": rounds.load, "arms": arms})


if __name__ == "__main__":
    main()
