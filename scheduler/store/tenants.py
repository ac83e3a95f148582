"""Tenants: who exists."""

from __future__ import annotations

from scheduler.domain.tenant import Tenant
from scheduler.store.database import Database


class Tenants:
    """All tenants; for composition roots, the command line and admin routes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(self, name: str, *, is_admin: bool = False, weight: float = 1.0) -> Tenant:
        """Create a tenant.

        Raises:
            InvalidInput: the name is not a slug.
            Conflict: the name is taken.
        """
        raise NotImplementedError

    async def get(self, tenant_id: str) -> Tenant:
        """Raises NotFound when there is no such tenant."""
        raise NotImplementedError

    async def get_by_name(self, name: str) -> Tenant:
        """Raises NotFound when there is no such tenant."""
        raise NotImplementedError

    async def list(self) -> list[Tenant]:
        """All tenants, oldest first."""
        raise NotImplementedError
