"""/v1/adapters: adapters and their versions, in and out."""

from operator import attrgetter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from scheduler.domain.errors import (
    AdapterInUse,
    InvalidInput,
    ModelNotFound,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    QuotaExceeded,
)
from service.adapter_read import read_adapter, read_detail, read_version
from service.adapter_removal import remove_adapter
from service.adapter_upload import received_adapter
from service.deps import (
    AdapterImportDep,
    AdaptersDep,
    EnginesDep,
    FilesDep,
    ObjectsDep,
    OneTransfer,
    ReplaysDep,
    RosterDep,
    SettingsDep,
)
from service.errors import errors
from service.schemas.adapter import (
    MAX_VERSION,
    AdapterDetail,
    AdapterRead,
    AdapterVersionRead,
    VersionPath,
)
from service.schemas.base import Deleted, ListPage

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

_SOURCE: dict[str, Any] = {
    "file": {"type": "string", "format": "binary", "description": "A .zip, .tar.gz or .tar."},
    "file_id": {"type": "string", "description": "Id of an archive uploaded to /v1/files."},
    "files": {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "adapter_config.json and adapter_model.safetensors.",
    },
}
_NEW: dict[str, Any] = {
    "model": {"type": "string", "description": "Id of the base model."},
    "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
}


def _form(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": properties}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


@router.get("", responses=errors(InvalidInput))
async def list_adapters(
    adapters: AdaptersDep,
    after: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    order: Literal["asc", "desc"] = "asc",
) -> ListPage[AdapterRead]:
    """List adapters, the tenant's own and those shared with it, those of running jobs too."""
    page = await adapters.list(after=after, limit=limit, order=order)
    return ListPage.of([read_adapter(adapter) for adapter in page], has_more=page.has_more)


@router.post(
    "",
    dependencies=[OneTransfer],
    openapi_extra=_form(_NEW | _SOURCE, ["model", "name"]),
    responses=errors(
        InvalidInput, ModelNotFound, NotFound, PayloadTooLarge, QuotaExceeded, Overloaded
    ),
)
async def import_adapter(
    request: Request,
    adapters: AdaptersDep,
    importing: AdapterImportDep,
    files: FilesDep,
    objects: ObjectsDep,
    settings: SettingsDep,
    replays: ReplaysDep,
) -> AdapterRead:
    """Import a peft LoRA: safetensors and its configuration, checked against the base model."""
    async with received_adapter(request, files, objects, settings.max_adapter_bytes) as upload:
        key = replays.key_for("adapters", upload.fields, upload.sha256)
        earlier = await replays.earlier(key)
        if earlier is not None:
            return read_adapter(await adapters.get(earlier))
        return read_adapter(await importing.create(upload, key))


@router.get("/{adapter_id}", responses=errors(NotFound))
async def retrieve_adapter(
    adapter_id: str, adapters: AdaptersDep, roster: RosterDep
) -> AdapterDetail:
    """Show one adapter, and to its owner which workers hold it where."""
    return read_detail(await adapters.get(adapter_id), roster.workers)


@router.delete("/{adapter_id}", responses=errors(NotFound, PermissionDenied, AdapterInUse))
async def delete_adapter(
    adapter_id: str, adapters: AdaptersDep, engines: EnginesDep, objects: ObjectsDep
) -> Deleted:
    """Delete an adapter with all its versions, unless it is pinned, shared or in use."""
    await remove_adapter(adapter_id, adapters, engines.pool, objects)
    return Deleted(id=adapter_id, object="adapter")


@router.get("/{adapter_id}/versions", responses=errors(NotFound, InvalidInput))
async def list_versions(
    adapter_id: str,
    adapters: AdaptersDep,
    after: Annotated[
        int | None, Query(ge=1, le=MAX_VERSION, description="Last version of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListPage[AdapterVersionRead]:
    """List an adapter's versions, newest first."""
    page = await adapters.versions(adapter_id, after=after, limit=limit)
    read = [read_version(version) for version in page]
    return ListPage.of(read, has_more=page.has_more, cursor=attrgetter("version"))


@router.post(
    "/{adapter_id}/versions",
    dependencies=[OneTransfer],
    openapi_extra=_form(_SOURCE, []),
    responses=errors(
        InvalidInput, NotFound, PermissionDenied, PayloadTooLarge, QuotaExceeded, Overloaded
    ),
)
async def import_version(
    adapter_id: str,
    request: Request,
    adapters: AdaptersDep,
    importing: AdapterImportDep,
    files: FilesDep,
    objects: ObjectsDep,
    settings: SettingsDep,
) -> AdapterVersionRead:
    """Import a further version; the plain name answers with it once it is promoted."""
    adapter = await adapters.get_own(adapter_id)
    async with received_adapter(request, files, objects, settings.max_adapter_bytes) as upload:
        return read_version(await importing.add_version(upload, adapter))


@router.get("/{adapter_id}/versions/{version}", responses=errors(NotFound))
async def retrieve_version(
    adapter_id: str, version: VersionPath, adapters: AdaptersDep
) -> AdapterVersionRead:
    """Show one version."""
    return read_version(await adapters.version(adapter_id, version))
