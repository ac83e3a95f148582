"""Who calls, and what they may use."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.domain.service_class import DEFAULT

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
    """

    id: str
    name: str
    is_admin: bool = False
    weight: float = 1.0
    service_class: str = DEFAULT
