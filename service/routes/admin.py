"""/v1/admin: tenants and keys, for admin keys only."""

from fastapi import APIRouter

from scheduler.domain.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
)
from service.deps import AdminKeys, AdminTenants, RosterDep
from service.errors import errors
from service.schemas.admin import (
    KeyCreate,
    KeyCreated,
    KeyRead,
    TenantChange,
    TenantCreate,
    TenantRead,
)
from service.schemas.base import Deleted, ListPage
from service.tenant_read import read_tenant

router = APIRouter(prefix="/v1/admin", tags=["admin"])


@router.post("/tenants", responses=errors(InvalidInput, PermissionDenied, Conflict, Overloaded))
async def create_tenant(body: TenantCreate, tenants: AdminTenants, roster: RosterDep) -> TenantRead:
    """Create a tenant."""
    roster.check_declared(body.service_class)
    tenant = await tenants.create(
        body.name,
        is_admin=body.is_admin,
        weight=body.weight,
        service_class=body.service_class,
        requests_per_minute=body.requests_per_minute,
        tokens_per_minute=body.tokens_per_minute,
    )
    return read_tenant(tenant)


@router.post(
    "/tenants/{tenant_id}", responses=errors(InvalidInput, NotFound, PermissionDenied, Overloaded)
)
async def change_tenant(
    tenant_id: str, body: TenantChange, tenants: AdminTenants, roster: RosterDep
) -> TenantRead:
    """Change a tenant's service class, weight or rate limits; its next request sees it."""
    if body.service_class is not None:
        roster.check_declared(body.service_class)
    changed = await tenants.change(
        tenant_id,
        weight=body.weight,
        service_class=body.service_class,
        requests_per_minute=body.requests_per_minute,
        tokens_per_minute=body.tokens_per_minute,
    )
    return read_tenant(changed)


@router.get("/tenants", responses=errors(PermissionDenied))
async def list_tenants(tenants: AdminTenants) -> ListPage[TenantRead]:
    """List all tenants, oldest first."""
    return ListPage(data=[read_tenant(tenant) for tenant in await tenants.list()])


@router.post("/tenants/{tenant_id}/keys", responses=errors(NotFound, PermissionDenied))
async def create_key(tenant_id: str, body: KeyCreate, keys: AdminKeys) -> KeyCreated:
    """Create a key of a tenant; the answer is the only place that ever shows it."""
    key_id, plaintext = await keys.create(tenant_id, body.name)
    return KeyCreated(id=key_id, tenant_id=tenant_id, name=body.name, value=plaintext)


@router.get("/tenants/{tenant_id}/keys", responses=errors(PermissionDenied))
async def list_keys(tenant_id: str, keys: AdminKeys) -> ListPage[KeyRead]:
    """List a tenant's keys, revoked ones too."""
    read = [
        KeyRead(
            id=key.id,
            tenant_id=key.tenant_id,
            name=key.name,
            prefix=key.prefix,
            created_at=key.created_at,
            revoked_at=key.revoked_at,
        )
        for key in await keys.list(tenant_id)
    ]
    return ListPage(data=read)


@router.delete("/keys/{key_id}", responses=errors(NotFound, PermissionDenied))
async def revoke_key(key_id: str, keys: AdminKeys) -> Deleted:
    """Revoke a key: from now on it does not work."""
    await keys.revoke(key_id)
    return Deleted(id=key_id, object="api_key")
