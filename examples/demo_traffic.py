"""Chat traffic that never pauses, with the clock on every answer."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from openai import AsyncOpenAI

ANSWER_TOKENS = 24
PAUSE_S = 0.05  # a reader who thinks a little before the next question


@dataclass(frozen=True)
class Target:
    """A model, and the client of a tenant who may call it."""

    client: AsyncOpenAI
    model: str


@dataclass(frozen=True)
class Sample:
    """The times of one answer; monotonic seconds."""

    began_s: float
    ended_s: float
    ttft_s: float
    tpot_s: float


@dataclass
class Traffic:
    """Readers who ask one question after the other.

    Attributes:
        targets: who is asked; more may be added while it runs.
        questions: what they ask.
        samples: every answer so far.
    """

    targets: list[Target]
    questions: Sequence[str]
    samples: list[Sample] = field(default_factory=list)

    @asynccontextmanager
    async def running(self, readers: int) -> AsyncIterator[None]:
        """Keep so many readers asking."""
        tasks = [asyncio.create_task(self._read(random.Random(seed))) for seed in range(readers)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def between(self, began_s: float, ended_s: float) -> list[Sample]:
        """The answers that began and ended within a stretch of time."""
        return [s for s in self.samples if began_s <= s.began_s and s.ended_s <= ended_s]

    async def _read(self, rng: random.Random) -> None:
        while True:
            self.samples.append(await ask(rng.choice(self.targets), rng.choice(self.questions)))
            await asyncio.sleep(PAUSE_S)


async def ask(target: Target, question: str) -> Sample:
    """Stream one answer and time its tokens."""
    began_s = time.monotonic()
    stream = await target.client.chat.completions.create(
        model=target.model,
        messages=[{"role": "user", "content": question}],
        max_tokens=ANSWER_TOKENS,
        temperature=0.7,
        stream=True,
        extra_body={"ignore_eos": True},  # answers of one length are easier to compare
    )
    arrivals_s = [time.monotonic() async for chunk in stream if chunk.choices]
    ended_s = time.monotonic()
    first_s = arrivals_s[0] if arrivals_s else ended_s
    num_gaps = max(1, ANSWER_TOKENS - 1)
    return Sample(began_s, ended_s, first_s - began_s, (ended_s - first_s) / num_gaps)


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
