"""A run's figures as a short table: one line for each number, with what it is measured against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SKIPPED = ("kernel_checks",)


def table(results: dict[str, Any]) -> str:
    """Every figure of every part on a line of its own; errors where a part has none."""
    return "\n".join(line for name, part in results["parts"].items() for line in _part(name, part))


def _part(name: str, part: dict[str, Any]) -> Iterator[str]:
    if "error" in part:
        yield f"{name}: {part['error'].splitlines()[-1] if part['error'] else 'failed'}"
    elif name in SKIPPED:
        yield f"{name}: {part['kernels']}, wrong: {', '.join(part['wrong']) or 'none'}"
    else:
        yield from _lines(name, part)


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
