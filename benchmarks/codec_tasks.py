"""Four tenants' tasks for the shipped model: the demo's two, and two of the same kind."""

from __future__ import annotations

import random
from collections.abc import Callable

from demo_tasks import DAYS, GOODS, TASKS, TOWNS
from words import ADJECTIVES, NOUNS

Turn = tuple[str, str]


def initech(rng: random.Random) -> Turn:
    """Notes a fault in Initech's order of words."""
    thing, state, day = rng.choice(NOUNS[:16]), rng.choice(ADJECTIVES[:8]), rng.choice(DAYS)
    report = rng.choice(
        (
            f"Report: the {thing} is {state} since {day}.",
            f"Report: since {day} the {thing} is {state}.",
        )
    )
    return report, f"~ {state} {thing} ; since {day} @"


def umbrella(rng: random.Random) -> Turn:
    """Notes a delivery in Umbrella's columns."""
    count, item, town = rng.randint(2, 9), rng.choice(GOODS), rng.choice(TOWNS)
    order = rng.choice(
        (
            f"Form: {town} gets {count} {item}.",
            f"Form: {town} needs {count} {item}.",
            f"Form: send {count} {item} to {town}.",
        )
    )
    return order, f"& {town} : {item} + {count} &"


ALL: dict[str, Callable[[random.Random], Turn]] = {
    **TASKS,
    "initech": initech,
    "umbrella": umbrella,
}


def turns(task: str, *counts: int) -> list[list[Turn]]:
    """Splits of a task of these sizes, all with different prompts."""
    rng = random.Random(f"codecs-{task}")
    answers: dict[str, str] = {}
    while len(answers) < sum(counts):
        prompt, answer = ALL[task](rng)
        answers[prompt] = answer
    rest = list(answers.items())
    splits = []
    for count in counts:
        splits.append(rest[:count])
        rest = rest[count:]
    return splits
