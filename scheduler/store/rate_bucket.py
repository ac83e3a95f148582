"""Token buckets that hold tenants to their rate limits, the same for all gateways.

A tenant has a bucket of requests and one of tokens, as far as they are limited. Nothing here is the
record of anything: buckets that were lost are full.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.domain.errors import Overloaded
from scheduler.domain.rate_limit import RateKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.domain.bucket_level import BucketLevel
    from scheduler.domain.rate_limit import RateLimits


class BucketsDown(Overloaded):
    """The buckets did not answer within their patience; what was asked may have been done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What was asked of a tenant's buckets, and how they stand since.

    Attributes:
        buckets: those that were asked.
        tenant_id: whose.
        limits: under which it was asked.
        cost: how much of each kind was asked for.
        granted: whether it was taken; a refusal takes nothing.
        levels: the buckets afterwards, those with a limit.
    """

    buckets: RateBuckets
    tenant_id: str
    limits: RateLimits
    cost: Mapping[RateKind, int]
    granted: bool
    levels: Mapping[RateKind, BucketLevel]

    @property
    def scarcest(self) -> RateKind:
        """The kind that lets it wait longest."""
        return max(self.levels, key=self.wait_ms)

    def wait_ms(self, kind: RateKind) -> int:
        """How long until its bucket of that kind could hold enough for it."""
        return self.levels[kind].wait_ms(self.cost[kind])

    async def settle(self, num_tokens: int) -> None:
        """Give back the tokens beyond those that were really used; to be called once.

        Raises:
            BucketsDown: no connection; they stay spent.
        """
        unused = self.cost[RateKind.TOKENS] - num_tokens
        if self.granted and unused > 0 and RateKind.TOKENS in self.limits:
            await self.buckets.take(self.tenant_id, self.limits, {RateKind.TOKENS: -unused})


class RateBuckets(ABC):
    """The buckets of all tenants."""

    async def reserve(self, tenant_id: str, limits: RateLimits, num_tokens: int) -> Reservation:
        """Ask for one request of `num_tokens` tokens.

        Args:
            tenant_id: who asks.
            limits: the tenant's, at least one.
            num_tokens: the most that the request may come to.

        Raises:
            BucketsDown: no connection.
        """
        cost = {RateKind.REQUESTS: 1, RateKind.TOKENS: num_tokens}
        granted, levels = await self.take(tenant_id, limits, cost)
        return Reservation(
            buckets=self,
            tenant_id=tenant_id,
            limits=limits,
            cost=cost,
            granted=granted,
            levels=levels,
        )

    @abstractmethod
    async def take(
        self, tenant_id: str, limits: RateLimits, amounts: Mapping[RateKind, int]
    ) -> tuple[bool, dict[RateKind, BucketLevel]]:
        """Take from all of a tenant's buckets or from none, in one step that nobody else divides.

        Args:
            tenant_id: whose.
            limits: its buckets; one that is not among them is forgotten.
            amounts: how much of which kind; a negative one is given back, up to a full bucket.

        Returns:
            Whether it was taken, and the buckets afterwards.

        Raises:
            BucketsDown: no connection.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connection."""
