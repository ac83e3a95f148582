"""Learning rate by step: linear warm-up, then constant, linear or cosine decay to zero."""

from __future__ import annotations

import math
from collections.abc import Callable

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def learning_rate(
    peak: float, schedule: str, warmup_ratio: float, step: int, total_steps: int
) -> float:
    """Rate of optimizer step `step`, counted from 0."""
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * DECAYS[schedule](progress)
