"""Tenants as answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.schemas.admin import TenantRead

if TYPE_CHECKING:
    from scheduler.domain.tenant import Tenant


def read_tenant(tenant: Tenant) -> TenantRead:
    """What may be shown about a tenant."""
    return TenantRead(
        id=tenant.id,
        name=tenant.name,
        is_admin=tenant.is_admin,
        weight=tenant.weight,
        service_class=tenant.service_class,
        requests_per_minute=tenant.requests_per_minute,
        tokens_per_minute=tenant.tokens_per_minute,
    )
