"""Callers that ask at a fixed rate, while one of them is free: equal load for whatever serves."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from benchmarks.load import Load
from benchmarks.scripted_connection import ScriptedConnection
from scheduler.domain.messages import ToEngine


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Which requests come, and how often.

    Attributes:
        interval_s: between two requests.
        prompt_tokens, output_tokens: shortest and longest.
    """

    interval_s: float
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]

    def lengths(self, index: int) -> tuple[int, int]:
        """Prompt and output tokens of request `index`, always the same."""
        random = np.random.default_rng(30_000 + index)
        prompt, output = (
            int(random.integers(low, high, endpoint=True))
            for low, high in (self.prompt_tokens, self.output_tokens)
        )
        return prompt, output


class PacedCallers(ScriptedConnection):
    """The engine's pipe; a load's streams are the most requests that are in flight at once.

    What was not sent in time, for nobody was free, is made up for later.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        super().__init__(())
        self.arrivals = arrivals
        self._due_s = 0.0
        self._num_sent = 0
        self._num_free = 0

    def begin(self, load: Load | None) -> None:
        """Every stream sends a request; these end one after another. Phases send the same ones."""
        self.load, self._num_free = load, 0
        self._num_sent = load.num_streams if load else 0
        self._due_s = time.perf_counter() + self.arrivals.interval_s
        for place in range(self._num_sent):
            assert load is not None
            _, output_tokens = self.lengths(place)
            output_tokens = output_tokens * (place + 1) // load.num_streams
            order = self.request(load, output_tokens=output_tokens, is_first=True, index=place)
            self.orders.append(order)

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """See ScriptedConnection."""
        while self.load is not None and self._num_free and self._due_s <= time.perf_counter():
            self.orders.append(self.request(self.load, index=self._num_sent))
            self._num_sent += 1
            self._num_free -= 1
            self._due_s += self.arrivals.interval_s
        return super().poll(timeout_s)

    def ask_again(self) -> None:
        """Whoever has been answered waits for its turn."""
        self._num_free += 1

    def lengths(self, index: int) -> tuple[int, int]:
        """See ScriptedConnection."""
        return self.arrivals.lengths(index)
