"""Time to the first token of a lone request: into an idle engine, and into one that trains.

The same prompts arrive at random times, alone and into training in alternating blocks. A request
counts from when it arrives, whatever the engine is in the middle of.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.closed_loop import Bench
from benchmarks.load import Load
from benchmarks.plan import ADAPTERS
from benchmarks.spread import median, percentile, percentiles
from scheduler.policy.slack import SloTargets

BLOCK_REQUESTS = 4  # few enough to alternate often, enough to be worth the warm-up
GAP_S = (0.1, 0.9)  # between an answer and the next arrival: longer than any unit of training
OUTPUT_TOKENS = 4
LOAD = Load(1, ADAPTERS)
DEFAULTS = SloTargets(500.0, 50.0)  # of the service: a waiting request keeps training out of a step


def measure_first_tokens(bench: Bench, count: int) -> dict[str, object]:
    """TTFT of `count` requests each way, and what training adds to it."""
    gaps = np.random.default_rng(0).uniform(*GAP_S, size=(2, count))
    alone: list[float] = []
    training: list[float] = []
    bench.set_targets(DEFAULTS)
    for block in np.array_split(np.arange(count), -(-count // BLOCK_REQUESTS)):
        indices = [int(i) for i in block]
        alone += _block(bench, indices, gaps[0], num_jobs=0)
        training += _block(bench, indices, gaps[1], num_jobs=1)
    return first_token_figures(alone, training)


def first_token_figures(alone: list[float], training: list[float]) -> dict[str, object]:
    """Both distributions, and the differences between them and between equal requests."""
    added = [b - a for a, b in zip(alone, training, strict=True)]
    return {
        "alone_ms": percentiles(alone),
        "into_training_ms": percentiles(training),
        "added_p50_ms": median(training) - median(alone),
        "added_p99_ms": percentile(training, 0.99) - percentile(alone, 0.99),
        "added_by_request_ms": percentiles(added),
    }


def _block(bench: Bench, indices: list[int], gaps_s: np.ndarray, num_jobs: int) -> list[float]:
    """TTFT of some requests, one after the other."""
    jobs = bench.start(None, num_jobs)
    times = [_ask(bench, index, float(gaps_s[index])) for index in indices]
    bench.stop(jobs)
    return times


def _ask(bench: Bench, index: int, gap_s: float) -> float:
    """TTFT of one request that arrives `gap_s` from now."""
    connection = bench.connection
    due_s = time.perf_counter() + gap_s
    order = connection.request(LOAD, output_tokens=OUTPUT_TOKENS, sent_s=due_s, index=index)
    connection.later.append((due_s, order))
    connection.done.clear()
    bench.drive(lambda: bool(connection.done))
    return connection.done[0].ttft_ms
