"""A run's figures as a short table; what is long in itself has one line for all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def table(results: dict[str, Any]) -> str:
    """Every figure of every part on a line of its own; errors where a part has none."""
    return "\n".join(line for name, part in results["parts"].items() for line in _part(name, part))


def _part(name: str, part: dict[str, Any]) -> Iterator[str]:
    if name in SHORT and "error" not in part:
        yield SHORT[name](part)
    else:
        yield from _lines(name, {key: figure for key, figure in part.items() if key != "error"})
    if "error" in part:
        yield f"{name}: {part['error'].splitlines()[-1]}"


def _lines(path: str, value: object) -> Iterator[str]:
    match value:
        case dict() if value and all(isinstance(v, int | float) for v in value.values()):
            yield f"{path}: " + ", ".join(f"{k} {_number(v)}" for k, v in value.items())
        case dict():
            for key, inner in value.items():
                yield from _lines(f"{path}, {key}", inner)
        case list():
            for inner in value:
                yield from _lines(path, inner)
        case _:
            yield f"{path}: {_number(value)}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _checks(part: dict[str, Any]) -> str:
    return f"kernel_checks: {part['kernels']}, wrong: {', '.join(part['wrong']) or 'none'}"


SHORT: dict[str, Callable[[dict[str, Any]], str]] = {"kernel_checks": _checks}
