"""OpenAI's `service_tier` <-> our service classes.

A caller may step down to best effort (`flex`); the class above that is the tenant's own, which
only the operator changes. Answers say which of the two it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scheduler.domain.errors import InvalidInput
from scheduler.domain.service_class import BEST_EFFORT

if TYPE_CHECKING:
    from scheduler.domain.tenant import Tenant

AskedTier = Literal["auto", "default", "flex", "scale", "priority"]
ServedTier = Literal["default", "flex"]


def class_of(tier: AskedTier | None, tenant: Tenant) -> str:
    """The service class of a request.

    Raises:
        InvalidInput: a tier that is bought from OpenAI and does not exist here.
    """
    if tier == "flex":
        return BEST_EFFORT
    if tier in (None, "auto", "default"):
        return tenant.service_class
    raise InvalidInput(
        f"Service tier {tier!r} is not offered here; send 'auto', 'default' or 'flex'.",
        param="service_tier",
    )


def tier_of(service_class: str) -> ServedTier:
    """What the answer says about how it was served."""
    return "flex" if service_class == BEST_EFFORT else "default"
