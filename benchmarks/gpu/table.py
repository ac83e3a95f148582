"""A run's figures as a short table; what is long in itself has one line for all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def table(results: dict[str, Any]) -> str:
    """Every figure of every part on a line of its own; errors where a part has none."""
    return "\n".join(line for name, part in results["parts"].items() for line in _part(name, part))


def _part(name: str, part: dict[str, Any]) -> Iterator[str]:
    figures = {key: figure for key, figure in part.items() if key != "error"}
    yield from SHORT[name](figures) if name in SHORT else _lines(name, figures)
    if "error" in part:
        yield f"{name}: {part['error'].splitlines()[-1]}"


def _lines(path: str, figures: dict[str, Any]) -> Iterator[str]:
    """Single figures on a line together, groups of them each below."""
    groups = {key: value for key, value in figures.items() if isinstance(value, dict | list)}
    single = {key: value for key, value in figures.items() if key not in groups}
    if single:
        yield f"{path}: " + ", ".join(f"{k} {_number(v)}" for k, v in single.items())
    for key, group in groups.items():
        for each in group if isinstance(group, list) else [group]:
            yield from _lines(f"{path}, {key}", each)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _checks(part: dict[str, Any]) -> Iterator[str]:
    wrong = ", ".join(part.get("wrong", ())) or "none"
    yield f"kernel_checks: {part.get('kernels')}, wrong: {wrong}"


def _kernel_times(part: dict[str, Any]) -> Iterator[str]:
    for name, step in part.items():
        if name.startswith("linears"):
            slow = {linear: figures["times_roofline"] for linear, figures in step.items()}
            yield from _lines(f"kernel_times, {name}, times roofline", slow)
        elif isinstance(step, dict):
            families = {family: each["ms"] for family, each in step["families"].items()}
            yield from _lines(f"kernel_times, {name}, ms", families | {"gap": step["gap_ms"]})


def _tuning(part: dict[str, Any]) -> Iterator[str]:
    for name, sweep in part.items():
        if isinstance(sweep, dict) and sweep["best"]:
            share = sweep["best"]["share_of_present"]
            yield f"tuning, {name}: {sweep['best']['value']} takes {_number(share)} of the present"


SHORT: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "kernel_checks": _checks,
    "kernel_times": _kernel_times,
    "tuning": _tuning,
}
