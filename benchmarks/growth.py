"""How rate and engine overhead grow with streams and adapters."""

from __future__ import annotations

from benchmarks.bench_model import BenchModel
from benchmarks.closed_loop import NO_TARGETS, Bench
from benchmarks.load import Load, StopRule
from benchmarks.peers.prompts import OUTPUT_TOKENS, PROMPT_TOKENS
from benchmarks.plan import Plan
from benchmarks.spread import percentiles
from benchmarks.step_parts import StepParts

PAGE_TOKENS = 32


def measure_growth(model: BenchModel, plan: Plan) -> dict[str, object]:
    """Inference alone under each load, on an engine with room for the largest."""
    streams = max(load.num_streams for load in plan.growth)
    adapters = max(load.num_adapters for load in plan.growth)
    longest = -(-(PROMPT_TOKENS[1] + OUTPUT_TOKENS[1] + 1) // PAGE_TOKENS) * PAGE_TOKENS
    bench = Bench(
        model,
        max_num_sequences=streams,
        adapter_slots=adapters,
        page_tokens=PAGE_TOKENS,
        kv_cache_tokens=streams * longest,
    )
    bench.set_targets(NO_TARGETS)
    return {
        load_name(load): _grown(bench, load, StopRule(plan.growth_seconds)) for load in plan.growth
    }


def load_name(load: Load) -> str:
    """A load's name in the results."""
    return f"{load.num_streams} streams, {load.num_adapters} adapters"


def _grown(bench: Bench, load: Load, stop: StopRule) -> dict[str, object]:
    jobs = bench.start(load, 0)
    with StepParts(bench) as parts:
        result = bench.measure(stop)
    bench.stop(jobs)
    return {
        "output_tokens_per_s": result.output_tokens_per_s,
        "tpot_ms": percentiles(result.tpot_ms),
        "steps": len(result.steps),
    } | parts.figures()
