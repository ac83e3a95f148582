"""A virtual token counter for each tenant: whoever was served least, by weight, goes first.

Inference and training charge the same counter. A tenant that comes back from idling starts at the
lowest counter among those that wait or run, so idleness banks no credit, and the counters of
tenants that always have work stay close together. Nothing is held back: with one tenant's work
only, that tenant gets everything.

Source: Sheng et al., OSDI 2024, arXiv:2401.00588 (VTC).
"""

from __future__ import annotations

from threading import Lock

PROMPT_PRICE = 1.0
OUTPUT_PRICE = 2.0
TRAINING_PRICE = 3.0  # forward, and backward at about twice that


class FairShare:
    """Counters of all tenants that have been seen; both lanes of a step charge them."""

    def __init__(self) -> None:
        self._charging = Lock()
        self._counters: dict[str, float] = {}
        self._active: dict[str, int] = {}

    def enter(self, tenant_id: str) -> None:
        """A request or job of the tenant has arrived."""
        if not self._active.get(tenant_id):
            floor = min((self._counters[t] for t in self._active), default=0.0)
            self._counters[tenant_id] = max(self._counters.get(tenant_id, 0.0), floor)
        self._active[tenant_id] = self._active.get(tenant_id, 0) + 1

    def leave(self, tenant_id: str) -> None:
        """A request or job of the tenant has ended."""
        self._active[tenant_id] -= 1
        if self._active[tenant_id] == 0:
            del self._active[tenant_id]

    def charge(self, tenant_id: str, weight: float, cost: float) -> None:
        """The tenant was served work of `cost` price-weighted tokens."""
        with self._charging:
            self._counters[tenant_id] += cost / weight

    def level(self, tenant_id: str) -> float:
        """The tenant's counter: lower goes first."""
        return self._counters.get(tenant_id, 0.0)

    @property
    def spread(self) -> float:
        """Largest difference between tenants that have work."""
        levels = [self._counters[t] for t in self._active]
        return max(levels) - min(levels) if levels else 0.0
