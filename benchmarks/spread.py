"""Medians, percentiles and spreads: everything that a measurement boils down to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence


def median(values: Iterable[float]) -> float:
    """The median; NaN of nothing."""
    known = list(values)
    return statistics.median(known) if known else math.nan


def share(part: float, whole: float) -> float:
    """Part of whole; NaN of nothing."""
    return part / whole if whole else math.nan


def percentile(values: Iterable[float], part: float) -> float:
    """The smallest value that at least `part` of all values do not exceed; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50 and p99, and how many values are behind them."""
    return {"p50": median(values), "p99": percentile(values, 0.99), "count": len(values)}


def spread(rounds: Sequence[float]) -> dict[str, float | list[float]]:
    """The median of the rounds, the lowest and the highest, and each round; NaN counts nowhere."""
    known = [value for value in rounds if not math.isnan(value)]
    return {
        "median": median(known),
        "low": min(known, default=math.nan),
        "high": max(known, default=math.nan),
        "rounds": list(rounds),
    }


def rounded(value: object, digits: int = 5) -> object:
    """The same, with numbers to so many significant digits and NaN as None: fit for JSON."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
