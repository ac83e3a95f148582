"""/v1/tenant and /v1/usage: who the caller is, and what it has used."""

from fastapi import APIRouter

from scheduler.domain.errors import InvalidInput
from service.auth import CurrentTenant
from service.deps import UsageDep
from service.errors import errors
from service.schemas.account import ModelUsageRead
from service.schemas.admin import TenantRead
from service.schemas.base import ListPage
from service.tenant_read import read_tenant
from service.usage_read import DEFAULT_DAYS, Days, first_of, read_usage

router = APIRouter(prefix="/v1", tags=["account"])


@router.get("/tenant", responses=errors())
async def retrieve_tenant(tenant: CurrentTenant) -> TenantRead:
    """Show the tenant that the key belongs to."""
    return read_tenant(tenant)


@router.get("/usage", responses=errors(InvalidInput))
async def list_usage(usage: UsageDep, days: Days = DEFAULT_DAYS) -> ListPage[ModelUsageRead]:
    """List the tenant's tokens by model, most first; the newest seconds may be missing."""
    return read_usage(await usage.since(first_of(days)))
