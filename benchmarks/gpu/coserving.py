"""Serving and training at once: what each keeps of its rate, under a target of 25 ms a token."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.gpu.card_engine import CardEngine, CardPhase, card_engine
from benchmarks.gpu.setting import Figures, Setting
from benchmarks.load import RequestTimes

TPOT_MS = 25.0
MOST_TOKENS = 100_000  # a saturating request outlives its phase


def measure(setting: Setting) -> Figures:
    """Training alone, then beside callers at each rate, then beside saturated decode."""
    bench = card_engine(setting, 1000.0 if setting.is_tiny else TPOT_MS)
    rates, seconds = ((4.0,), 1.0) if setting.is_tiny else ((1.0, 4.0, 8.0, 16.0), 15.0)
    warm_up(bench, setting)
    bench.start_job()
    bench.measure(setting.seconds)
    alone = bench.measure(2 * setting.seconds)
    bench.stop()
    result: Figures = {
        "model": setting.largest,
        "target_tpot_ms": TPOT_MS,
        "training_alone_tokens_per_s": alone.train_tokens_per_s,
    }
    result["by_requests_per_s"] = {
        str(rate): rate_figures(bench, rate, seconds, alone) for rate in rates
    }
    for rides in (False, True):
        bench.host.trainer.windows_ride = rides
        result["saturated, windows in decode steps" if rides else "saturated, in turns"] = (
            saturated(bench, setting, alone)
        )
    return result


def warm_up(bench: CardEngine, setting: Setting) -> None:
    """Compile kernels and capture graphs before anything is measured."""
    bench.connection.begin(8.0)
    bench.measure(2 * setting.seconds)
    bench.stop()


def rate_figures(
    bench: CardEngine, rate: float, seconds: float, alone: CardPhase
) -> dict[str, object]:
    """One rate of arrivals beside one job."""
    bench.start_job()
    bench.connection.begin(rate)
    bench.measure(0.2 * seconds)
    phase = bench.measure(seconds)
    bench.stop()
    return {
        "train_tokens_per_s": phase.train_tokens_per_s,
        "train_share": share(phase.train_tokens_per_s, alone.train_tokens_per_s),
        "output_tokens_per_s": phase.output_tokens_per_s,
        "requests": len(phase.requests),
        "tpot_ms": quantiles([times.tpot_ms for times in phase.requests]),
        "ttft_ms": quantiles([times.ttft_ms for times in phase.requests]),
        "tpot_attainment": attainment(phase.requests),
    }


def saturated(bench: CardEngine, setting: Setting, alone: CardPhase) -> dict[str, object]:
    """Efficiency eta: share of serving alone plus share of training alone, in full decode."""
    streams = 8 if setting.is_tiny else 64
    seconds = setting.seconds
    serving = decode_phase(bench, streams, seconds)
    bench.start_job()
    both = decode_phase(bench, streams, 2 * seconds)
    output = share(both.output_tokens_per_s, serving.output_tokens_per_s)
    train = share(both.train_tokens_per_s, alone.train_tokens_per_s)
    return {
        "streams": streams,
        "output_share": output,
        "train_share": train,
        "eta": output + train,
        "serving_alone_tokens_per_s": serving.output_tokens_per_s,
    }


def decode_phase(bench: CardEngine, streams: int, seconds: float) -> CardPhase:
    """Streams that decode from before the phase until after it."""
    most = bench.host.info.max_model_len - 2 * 1024
    for _ in range(streams):
        bench.connection.ask(output_tokens=min(MOST_TOKENS, most))
    asked = list(bench.connection.requests.values())
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
