"""Who calls, and what they may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.domain.rate_limit import RateKind
from scheduler.domain.service_class import DEFAULT

if TYPE_CHECKING:
    from scheduler.domain.rate_limit import RateLimits

MAX_WEIGHT = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A team: the unit of isolation, quota and fairness.

    Attributes:
        id: `org-...`, returned as OpenAI's organization_id.
        name: unique slug, part of adapter names `ft:base:NAME:suffix:id`.
        is_admin: may list workers and create keys over HTTP.
        weight: share of contended capacity relative to other tenants.
        service_class: whose latency targets its requests have.
        requests_per_minute: of chat and text completions; None: no limit.
        tokens_per_minute: of their prompts and answers; None: no limit.
    """

    id: str
    name: str
    is_admin: bool = False
    weight: float = 1.0
    service_class: str = DEFAULT
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @property
    def rate_limits(self) -> RateLimits:
        """Those that it has."""
        limits = {
            RateKind.REQUESTS: self.requests_per_minute,
            RateKind.TOKENS: self.tokens_per_minute,
        }
        return {kind: limit for kind, limit in limits.items() if limit is not None}
