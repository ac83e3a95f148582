"""/v1/adapters/ID/versions/N/...: a version on its way out, as it is or merged into its base."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response, StreamingResponse

from scheduler.domain.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
)
from scheduler.store.adapter_orders import Order
from service.adapter_export import merged_members, open_export
from service.deps import AdaptersDep, CodedDep, ObjectsDep, OneTransfer, OrdersDep, SettingsDep
from service.errors import errors
from service.schemas.adapter import MergeRead, VersionPath
from service.schemas.base import Deleted
from service.tar_members import TarMember, tar_chunks, tar_length

router = APIRouter(prefix="/v1/adapters/{adapter_id}/versions/{version}", tags=["adapters"])


def _read(order: Order, version: int) -> MergeRead:
    return MergeRead(
        adapter_id=order.adapter_id,
        version=version,
        status=order.status.value,
        created_at=order.created_at,
        finished_at=order.finished_at,
        bytes=sum(order.files.values()) if order.files else None,
        error=order.error_message,
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


def _octets(path: Path, name: str, after: BackgroundTask) -> Response:
    return FileResponse(
        path, media_type="application/octet-stream", filename=name, background=after
    )


@router.get(
    "/export",
    dependencies=[OneTransfer],
    response_class=Response,
    responses=errors(InvalidInput, NotFound, PermissionDenied, Conflict, QuotaExceeded, Overloaded)
    | {
        200: {
            "content": {
                "application/x-tar": {"schema": {"type": "string"}},
                "application/octet-stream": {"schema": {"type": "string"}},
            }
        }
    },
)
async def export_version(
    adapter_id: str,
    version: VersionPath,
    adapters: AdaptersDep,
    orders: OrdersDep,
    objects: ObjectsDep,
    coded: CodedDep,
    settings: SettingsDep,
    format: Annotated[
        Literal["peft", "compeft", "merged"],
        Query(description="A folder for peft, one coded file, or a full model merged before."),
    ] = "peft",
) -> Response:
    """The version as the tar of a folder that peft or transformers loads, or as one coded file."""
    adapter = await adapters.get_own(adapter_id)
    if format == "merged":
        order = await orders.finished_export(adapter_id, version)
        return _tar(f"{adapter_id}-v{version}-merged", merged_members(order, objects))
    export = await open_export(adapter_id, await adapters.version(adapter_id, version), objects)
    async with AsyncExitStack() as undo:
        undo.callback(export.close)
        if format == "compeft":
            response = _octets(
                export.archive, f"{export.name}.tandem", BackgroundTask(export.close)
            )
        else:
            await export.expand(coded, settings.model_dirs().get(adapter.base_model))
            response = _tar(export.name, export.members, background=BackgroundTask(export.close))
        undo.pop_all()
    return response


@router.post("/merge", responses=errors(NotFound, PermissionDenied, QuotaExceeded))
async def merge_version(
    adapter_id: str,
    version: VersionPath,
    adapters: AdaptersDep,
    orders: OrdersDep,
    settings: SettingsDep,
) -> MergeRead:
    """Have a full model made of base and version; repeating it orders nothing new."""
    await adapters.get_own(adapter_id)
    order = await orders.export(adapter_id, version, max_kept=settings.max_merges)
    return _read(order, version)


@router.get("/merge", responses=errors(NotFound, PermissionDenied))
async def retrieve_merge(
    adapter_id: str, version: VersionPath, adapters: AdaptersDep, orders: OrdersDep
) -> MergeRead:
    """Show how far a merge is."""
    await adapters.get_own(adapter_id)
    return _read(await orders.exported(adapter_id, version), version)


@router.delete("/merge", responses=errors(NotFound, PermissionDenied))
async def delete_merge(
    adapter_id: str,
    version: VersionPath,
    adapters: AdaptersDep,
    orders: OrdersDep,
    objects: ObjectsDep,
) -> Deleted:
    """Delete a merged model, or take back its order."""
    await adapters.get_own(adapter_id)
    uri = await orders.delete(await orders.exported(adapter_id, version))
    if uri is not None:
        await objects.delete(uri)
    return Deleted(id=f"{adapter_id}@{version}", object="adapter.merge")
