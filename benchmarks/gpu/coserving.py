"""Serving and training at once: what each keeps of its rate, under a target of 25 ms a token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu.card_engine import CardEngine, CardPhase, card_engine
from benchmarks.gpu.setting import Figures, Setting
from benchmarks.load import RequestTimes

TPOT_MS = 25.0
MOST_TOKENS = 14_000  # a saturating request outlives its phase
# Requests a second, and for how long: a hundred or so, where there is time for that.
RATES = {4.0: 24.0, 16.0: 8.0, 8.0: 12.5, 1.0: 10.0}
LEAD_IN_S = 2.0


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to train in full decode: windows in its steps or not, units beside them or in turn."""

    name: str
    windows_ride: bool
    is_beside: bool


MODES = (
    Mode("units in turn", windows_ride=False, is_beside=False),
    Mode("windows riding", windows_ride=True, is_beside=False),
    Mode("units beside", windows_ride=False, is_beside=True),
)


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
    for rate, seconds in {4.0: 1.0}.items() if setting.is_tiny else RATES.items():
        by_rate[str(rate)] = rate_figures(bench, rate, seconds, alone)
        yield {"by_requests_per_s": by_rate}


def warm_up(bench: CardEngine, setting: Setting) -> None:
    """What a worker does before its first caller, and some callers who are not measured."""
    bench.rehearse()
    bench.connection.begin(8.0)
    bench.measure(setting.seconds)
    bench.stop()


def training_alone(bench: CardEngine, setting: Setting) -> CardPhase:
    """One job and no callers."""
    bench.start_job()
    bench.measure(setting.seconds)
    alone = bench.measure(setting.seconds)
    bench.stop()
    return alone


def rate_figures(
    bench: CardEngine, rate: float, seconds: float, alone: CardPhase
) -> dict[str, object]:
    """One rate of arrivals beside one job."""
    bench.start_job()
    bench.connection.begin(rate)
    bench.measure(min(seconds, LEAD_IN_S))
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
    for mode in MODES:
        with training_by(bench, mode) as can_be:
            if not can_be:
                continue
            bench.start_job()
            both = decode_phase(bench, streams, 2 * setting.seconds)
        output = share(both.output_tokens_per_s, serving.output_tokens_per_s)
        train = share(both.train_tokens_per_s, alone.train_tokens_per_s)
        yield {
            f"saturated, {mode.name}": {
                "output_share": output,
                "train_share": train,
                "eta": output + train,
            }
        }


@contextmanager
def training_by(bench: CardEngine, mode: Mode) -> Iterator[bool]:
    """While entered, training goes one way only; False: the device runs nothing beside a step."""
    trainer, planner = bench.host.trainer, bench.host.scheduler.planner
    before = trainer.windows_ride, planner.beside
    trainer.windows_ride = mode.windows_ride
    planner.beside = planner.beside if mode.is_beside else None
    yield planner.beside is not None or not mode.is_beside
    trainer.windows_ride, planner.beside = before


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
