"""/v1/adapters/ID/...: what moves while versions stay: live, tags, pin, borrowers."""

from typing import Annotated

from fastapi import APIRouter, Path

from scheduler.domain.errors import Conflict, InvalidInput, NotFound, PermissionDenied
from service.adapter_read import read_adapter
from service.deps import AdaptersDep
from service.errors import errors
from service.schemas.adapter import AdapterRead, ShareCreate, VersionChoice
from service.schemas.base import Deleted

router = APIRouter(prefix="/v1/adapters/{adapter_id}", tags=["adapters"])

Tag = Annotated[str, Path(max_length=64)]


@router.post("/promote", responses=errors(NotFound, PermissionDenied, InvalidInput))
async def promote_version(
    adapter_id: str, body: VersionChoice, adapters: AdaptersDep
) -> AdapterRead:
    """Make a version live: the plain name and `:live` answer with it from the next request on."""
    return read_adapter(await adapters.promote(adapter_id, body.version))


@router.post("/rollback", responses=errors(NotFound, PermissionDenied, Conflict))
async def roll_back(adapter_id: str, adapters: AdaptersDep) -> AdapterRead:
    """Undo the last promotion; repeated, it walks back through all of them."""
    return read_adapter(await adapters.roll_back(adapter_id))


@router.put("/tags/{tag}", responses=errors(NotFound, PermissionDenied, InvalidInput))
async def set_tag(
    adapter_id: str, tag: Tag, body: VersionChoice, adapters: AdaptersDep
) -> AdapterRead:
    """Put a tag on a version, taking it from any other."""
    return read_adapter(await adapters.set_tag(adapter_id, tag, body.version))


@router.delete("/tags/{tag}", responses=errors(NotFound, PermissionDenied))
async def delete_tag(adapter_id: str, tag: Tag, adapters: AdaptersDep) -> Deleted:
    """Forget a tag; the version stays."""
    await adapters.drop_tag(adapter_id, tag)
    return Deleted(id=tag, object="adapter.tag")


@router.post("/pin", responses=errors(NotFound, PermissionDenied))
async def pin_adapter(adapter_id: str, adapters: AdaptersDep) -> AdapterRead:
    """Protect an adapter from deletion, and keep it close to the engines that serve it."""
    return read_adapter(await adapters.set_pinned(adapter_id, True))


@router.post("/unpin", responses=errors(NotFound, PermissionDenied))
async def unpin_adapter(adapter_id: str, adapters: AdaptersDep) -> AdapterRead:
    """Let an adapter be deleted again."""
    return read_adapter(await adapters.set_pinned(adapter_id, False))


@router.post("/shares", responses=errors(NotFound, PermissionDenied, InvalidInput))
async def share_adapter(adapter_id: str, body: ShareCreate, adapters: AdaptersDep) -> AdapterRead:
    """Let another tenant see and call an adapter; it can neither change nor export it."""
    return read_adapter(await adapters.share(adapter_id, body.tenant_id))


@router.delete("/shares/{tenant_id}", responses=errors(NotFound, PermissionDenied))
async def unshare_adapter(
    adapter_id: str, tenant_id: Annotated[str, Path(max_length=64)], adapters: AdaptersDep
) -> Deleted:
    """End the sharing: the borrower's next request finds nothing, what runs runs on."""
    await adapters.unshare(adapter_id, tenant_id)
    return Deleted(id=tenant_id, object="adapter.share")
