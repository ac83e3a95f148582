"""API key -> tenant."""

from typing import TYPE_CHECKING, Annotated

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from scheduler.domain.errors import AuthenticationFailed, PermissionDenied
from scheduler.domain.tenant import Tenant

if TYPE_CHECKING:
    from service.gateway import Gateway

_BEARER = HTTPBearer(auto_error=False, description="A key from `tandem keys create`.")


async def authenticate(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> Tenant:
    """The tenant behind the request's bearer key.

    Raises:
        AuthenticationFailed: no key, or one that does not work.
    """
    if credentials is None or not credentials.credentials:
        raise AuthenticationFailed("Send your API key as 'Authorization: Bearer sk-tandem-...'.")
    gateway: Gateway = request.app.state.gateway
    tenant = await gateway.keys.authenticate(credentials.credentials)
    structlog.contextvars.bind_contextvars(tenant_id=tenant.id)
    return tenant


CurrentTenant = Annotated[Tenant, Depends(authenticate)]


async def require_admin(tenant: CurrentTenant) -> Tenant:
    """The tenant, if it may administer the service.

    Raises:
        PermissionDenied: it may not.
    """
    if not tenant.is_admin:
        raise PermissionDenied("This needs the key of an admin tenant.")
    return tenant


CurrentAdmin = Annotated[Tenant, Depends(require_admin)]
