"""/v1/adapters/ID/versions/N/...: a version on its way out, as it is or merged into its base."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from scheduler.domain.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
)
from scheduler.store.adapter_merges import Merge
from service.adapter_export import merged_members, open_export
from service.deps import AdaptersDep, MergesDep, ObjectsDep, SettingsDep
from service.errors import errors
from service.schemas.adapter import MergeRead, VersionPath
from service.schemas.base import Deleted
from service.tar_members import TarMember, tar_chunks, tar_length

router = APIRouter(prefix="/v1/adapters/{adapter_id}/versions/{version}", tags=["adapters"])


def _read(merge: Merge) -> MergeRead:
    return MergeRead(
        adapter_id=merge.adapter_id,
        version=merge.version,
        status=merge.status.value,
        created_at=merge.created_at,
        finished_at=merge.finished_at,
        bytes=sum(merge.files.values()) if merge.files else None,
        error=merge.error_message,
    )


def _tar(name: str, members: list[TarMember], **options: Any) -> Response:
    return StreamingResponse(
        tar_chunks(members),
        media_type="application/x-tar",
        headers={
            "content-length": str(tar_length(members)),
            "content-disposition": f'attachment; filename="{name}.tar"',
        },
        **options,
    )


@router.get(
    "/export",
    response_class=Response,
    responses=errors(InvalidInput, NotFound, PermissionDenied, Conflict)
    | {200: {"content": {"application/x-tar": {"schema": {"type": "string"}}}}},
)
async def export_version(
    adapter_id: str,
    version: VersionPath,
    adapters: AdaptersDep,
    merges: MergesDep,
    objects: ObjectsDep,
    format: Annotated[
        Literal["peft", "merged"],
        Query(description="A folder for peft, or a full model that was merged before."),
    ] = "peft",
) -> Response:
    """The version as the tar of a folder that peft, or transformers, loads."""
    await adapters.get_own(adapter_id)
    if format == "merged":
        merge = await merges.finished(adapter_id, version)
        return _tar(f"{adapter_id}-v{version}-merged", merged_members(merge, objects))
    export = await open_export(adapter_id, await adapters.version(adapter_id, version), objects)
    return _tar(export.name, export.members, background=BackgroundTask(export.close))


@router.post("/merge", responses=errors(NotFound, PermissionDenied, QuotaExceeded))
async def merge_version(
    adapter_id: str,
    version: VersionPath,
    adapters: AdaptersDep,
    merges: MergesDep,
    settings: SettingsDep,
) -> MergeRead:
    """Have a full model made of base and version; repeating it orders nothing new."""
    await adapters.get_own(adapter_id)
    return _read(await merges.order(adapter_id, version, max_merges=settings.max_merges))


@router.get("/merge", responses=errors(NotFound, PermissionDenied))
async def retrieve_merge(
    adapter_id: str, version: VersionPath, adapters: AdaptersDep, merges: MergesDep
) -> MergeRead:
    """Show how far a merge is."""
    await adapters.get_own(adapter_id)
    return _read(await merges.get(adapter_id, version))


@router.delete("/merge", responses=errors(NotFound, PermissionDenied))
async def delete_merge(
    adapter_id: str,
    version: VersionPath,
    adapters: AdaptersDep,
    merges: MergesDep,
    objects: ObjectsDep,
) -> Deleted:
    """Delete a merged model, or take back its order."""
    await adapters.get_own(adapter_id)
    merge = await merges.delete(adapter_id, version)
    if merge.uri is not None:
        await objects.delete(merge.uri)
    return Deleted(id=f"{adapter_id}@{version}", object="adapter.merge")
