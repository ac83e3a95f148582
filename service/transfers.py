"""Files on their way in and out of one gateway: so many of a tenant's at once, and no more."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scheduler.domain.errors import QuotaExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator


class Transfers:
    """Bounds how much of the gateway's disk one tenant can hold: each transfer keeps a copy there.

    Args:
        max_at_once: of one tenant.
    """

    def __init__(self, max_at_once: int) -> None:
        self._max_at_once = max_at_once
        self._open: Counter[str] = Counter()

    def num_open(self, tenant_id: str) -> int:
        """How many of the tenant's are on their way."""
        return self._open[tenant_id]

    @contextmanager
    def one_of(self, tenant_id: str) -> Iterator[None]:
        """Count one transfer of the tenant for as long as the block lasts.

        Raises:
            QuotaExceeded: the tenant has as many open as it may.
        """
        if self.num_open(tenant_id) >= self._max_at_once:
            raise QuotaExceeded(
                f"{self._max_at_once} uploads and exports of yours are open at this gateway, the "
                "most there may be; wait for one to end.",
                retry_after_s=1,
            )
        self._open[tenant_id] += 1
        try:
            yield
        finally:
            self._open[tenant_id] -= 1
            if not self._open[tenant_id]:
                del self._open[tenant_id]
