"""Where a worker keeps adapters: engine slots, host memory, local disk; and how often each served.

Digests are shortened and only so many are told: a report goes out every few seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pydantic import Field

from scheduler.domain.message import Report

TOLD_DIGITS = 16  # of a digest: enough for no two adapters to be taken for one another
MAX_TOLD = 1024


class Tier(StrEnum):
    """The places of an adapter on a worker, nearest to the device first."""

    SLOT = "slot"
    RAM = "ram"
    DISK = "disk"


class AdapterTier(Report):
    """What one tier of one worker holds, and totals since its process started."""

    tier: Tier
    num_adapters: int
    num_hits: int = Field(description="Requests whose adapter was looked for here and found.")
    num_misses: int
    num_loads: int = Field(description="Adapters brought here.")
    num_evictions: int
    digests: tuple[str, ...] = Field((), description="Shortened; most recently used first.")

    def holds(self, digest: str) -> bool:
        """Whether the adapter is among those told of."""
        return digest[:TOLD_DIGITS] in self.digests


def told(digests: Iterable[str]) -> tuple[str, ...]:
    """Digests as a report tells them; the most recently used must come first."""
    short = dict.fromkeys(digest[:TOLD_DIGITS] for digest in digests)
    return tuple(short)[:MAX_TOLD]
