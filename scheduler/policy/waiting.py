"""Sequences that wait to run: a line for each tenant, and the fair order between the lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from scheduler.domain.request import Sequence
from scheduler.policy.fairness import FairShare


class WaitingLines:
    """First come, first served inside a tenant; least served first between tenants."""

    def __init__(self, fair: FairShare) -> None:
        self._fair = fair
        self._lines: dict[str, deque[Sequence]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._lines.get(sequence.request.tenant_id, ())

    def add(self, sequence: Sequence) -> None:
        """Join the end of the tenant's line."""
        self._line(sequence).append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Return to the head of the tenant's line."""
        self._line(sequence).appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Leave the line, wherever in it."""
        tenant_id = sequence.request.tenant_id
        self._lines[tenant_id].remove(sequence)
        if not self._lines[tenant_id]:
            del self._lines[tenant_id]

    def heads(self) -> list[Sequence]:
        """The first of each line, least served tenant first."""
        lines = sorted(
            self._lines, key=lambda t: (self._fair.level(t), self._lines[t][0].arrival_s)
        )
        return [self._lines[tenant_id][0] for tenant_id in lines]

    def _line(self, sequence: Sequence) -> deque[Sequence]:
        return self._lines.setdefault(sequence.request.tenant_id, deque())
