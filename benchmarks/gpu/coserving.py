"""Serving and training at once: what each keeps of its rate, under a target of 25 ms a token."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from benchmarks.gpu.card_engine import CardEngine, CardPhase, card_engine
from benchmarks.gpu.setting import Figures, Setting
from benchmarks.load import RequestTimes

TPOT_MS = 25.0
MOST_TOKENS = 14_000  # a saturating request outlives its phase
RATES = (4.0, 16.0, 8.0, 1.0)
ENOUGH_REQUESTS = 100  # one that misses its target is then a hundredth
LONGEST_S, SHORTEST_S = 24.0, 8.0
LANES = {"saturated, units in turn": False, "saturated, windows riding": True}


def measure(setting: Setting) -> Iterator[Figures]:
    """Training alone, then beside saturated decode, then beside callers at each rate."""
    bench = card_engine(setting, 1000.0 if setting.is_tiny else TPOT_MS)
    warm_up(bench, setting)
    alone = training_alone(bench, setting)
    yield {
        "model": setting.largest,
        "target_tpot_ms": TPOT_MS,
        "training_alone_tokens_per_s": alone.train_tokens_per_s,
    }
    yield from saturated(bench, setting, alone)
    by_rate: Figures = {}
    for rate in RATES[:1] if setting.is_tiny else RATES:
        seconds = 1.0 if setting.is_tiny else phase_seconds(rate)
        by_rate[str(rate)] = rate_figures(bench, rate, seconds, alone)
        yield {"by_requests_per_s": by_rate}


def warm_up(bench: CardEngine, setting: Setting) -> None:
    """Compile kernels and capture graphs before anything is measured."""
    bench.connection.begin(8.0)
    bench.measure(2 * setting.seconds)
    bench.stop()


def training_alone(bench: CardEngine, setting: Setting) -> CardPhase:
    """One job and no callers."""
    bench.start_job()
    bench.measure(setting.seconds)
    alone = bench.measure(setting.seconds)
    bench.stop()
    return alone


def phase_seconds(rate: float) -> float:
    """Until ENOUGH_REQUESTS have come, where there is time for that."""
    return min(LONGEST_S, max(SHORTEST_S, ENOUGH_REQUESTS / rate))


def rate_figures(
    bench: CardEngine, rate: float, seconds: float, alone: CardPhase
) -> dict[str, object]:
    """One rate of arrivals beside one job."""
    bench.start_job()
    bench.connection.begin(rate)
    bench.measure(min(0.2 * seconds, 3.0))
    phase = bench.measure(seconds)
    bench.stop()
    judged = phase.requests + phase.running
    return {
        "seconds": phase.seconds,
        "train_tokens_per_s": phase.train_tokens_per_s,
        "train_share": share(phase.train_tokens_per_s, alone.train_tokens_per_s),
        "output_tokens_per_s": phase.output_tokens_per_s,
        "requests": len(phase.requests),
        "requests_running": len(phase.running),
        "tpot_ms": quantiles([times.tpot_ms for times in judged]),
        "ttft_ms": quantiles([times.ttft_ms for times in judged]),
        "tpot_attainment": attainment(judged),
    }


def saturated(bench: CardEngine, setting: Setting, alone: CardPhase) -> Iterator[Figures]:
    """Efficiency eta: share of serving alone plus share of training alone, in full decode."""
    streams = 8 if setting.is_tiny else 64
    serving = decode_phase(bench, streams, setting.seconds)
    yield {"streams": streams, "serving_alone_tokens_per_s": serving.output_tokens_per_s}
    for name, rides in LANES.items():
        bench.host.trainer.windows_ride = rides
        bench.start_job()
        both = decode_phase(bench, streams, 2 * setting.seconds)
        output = share(both.output_tokens_per_s, serving.output_tokens_per_s)
        train = share(both.train_tokens_per_s, alone.train_tokens_per_s)
        yield {name: {"output_share": output, "train_share": train, "eta": output + train}}
    bench.host.trainer.windows_ride = False


def decode_phase(bench: CardEngine, streams: int, seconds: float) -> CardPhase:
    """Streams that decode from before the phase until after it."""
    asked = [bench.connection.ask(output_tokens=MOST_TOKENS) for _ in range(streams)]
    bench.drive(lambda: all(times.token_s for times in asked))
    phase = bench.measure(seconds)
    bench.stop()
    return phase


def share(part: float, whole: float) -> float:
    """A part of a rate; NaN where there was none."""
    return part / whole if whole else math.nan


def quantiles(values: list[float]) -> dict[str, float] | None:
    """Median and 99th percentile."""
    if not values:
        return None
    return {"p50": float(np.median(values)), "p99": float(np.quantile(values, 0.99))}


def attainment(requests: list[RequestTimes]) -> float | None:
    """Share of requests whose mean time per token was within the target."""
    if not requests:
        return None
    return sum(times.tpot_ms <= TPOT_MS for times in requests) / len(requests)
