"""How long each part is measured: the full matrix within an hour, the quick one in nine minutes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from benchmarks.load import Load, StopRule

STREAMS = (1, 8, 32)  # of co-serving
PEER_STREAMS = 8  # the load that peers are measured under
ADAPTERS = 4
TARGETS = (1.5, 2.0)  # TPOT targets of co-serving, as factors on inference alone


@dataclass(frozen=True, slots=True)
class Plan:
    """Durations and counts.

    Attributes:
        budget_s: the whole run; no further round starts once its share would not fit.
        rounds: interleaved rounds of everything that is a ratio.
        alone: of a phase that only serves or only trains.
        requests: answered requests that should stand behind each attainment figure.
        max_both_s: bound on one co-serving phase, however few requests were answered.
        lone_requests: requests of the TTFT measurement, alone and into training each.
        growth: loads whose rate and overhead are shown.
    """

    name: str
    budget_s: float
    rounds: int
    alone: StopRule
    min_both_s: float
    max_both_s: float
    requests: int
    peer_seconds: float
    beside_seconds: float
    lone_requests: int
    growth: tuple[Load, ...]
    growth_seconds: float

    @property
    def both(self) -> StopRule:
        """Of one co-serving phase: its round's share of the requests, or the bound."""
        return StopRule(self.min_both_s, -(-self.requests // self.rounds), self.max_both_s)


QUICK = Plan(
    name="quick",
    budget_s=530,
    rounds=2,
    alone=StopRule(5, requests=3, max_s=15),
    min_both_s=7,
    max_both_s=7,
    requests=0,
    peer_seconds=5,
    beside_seconds=8,
    lone_requests=8,
    growth=(Load(1, 1), Load(8, 8), Load(32, 8), Load(128, 64)),
    growth_seconds=3,
)
FULL = Plan(
    name="full",
    budget_s=3600,
    rounds=5,
    alone=StopRule(15, requests=10, max_s=40),
    min_both_s=20,
    max_both_s=130,
    requests=300,
    peer_seconds=12,
    beside_seconds=25,
    lone_requests=40,
    growth=tuple(Load(streams, adapters) for adapters in (1, 8, 64) for streams in (1, 8, 32, 128)),
    growth_seconds=8,
)
SMOKE = Plan(  # shows that every part works; its figures mean nothing
    name="smoke",
    budget_s=600,
    rounds=1,
    alone=StopRule(2, requests=1, max_s=30),
    min_both_s=3,
    max_both_s=3,
    requests=0,
    peer_seconds=2,
    beside_seconds=3,
    lone_requests=3,
    growth=(Load(1, 1), Load(128, 64)),
    growth_seconds=1,
)
PLANS = {plan.name: plan for plan in (QUICK, FULL, SMOKE)}


@dataclass(slots=True)
class Budget:
    """The time of a run, and whether another round fits."""

    seconds: float
    began_s: float = field(default_factory=time.perf_counter)

    @property
    def left_s(self) -> float:
        """What is left."""
        return self.seconds - (time.perf_counter() - self.began_s)

    def fits(self, needed_s: float, reserved_s: float) -> bool:
        """Whether `needed_s` more fit before the reserved end."""
        return self.left_s >= needed_s + reserved_s
