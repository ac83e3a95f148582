"""/v1/files."""

import tempfile
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response

from scheduler.domain.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PayloadTooLarge,
    QuotaExceeded,
)
from scheduler.store.files import File, file_object_key, new_file_id
from service.auth import CurrentTenant
from service.deps import FilesDep, ObjectsDep, OneTransfer, ReplaysDep, SettingsDep
from service.errors import errors
from service.schemas.base import Deleted, ListPage
from service.schemas.file import FileRead
from service.upload import PURPOSES, received_upload

router = APIRouter(prefix="/v1/files", tags=["files"])

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                    },
                }
            }
        },
    }
}


def _read(file: File) -> FileRead:
    return FileRead(
        id=file.id,
        bytes=file.num_bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
        status=file.status,
    )


@router.post(
    "",
    dependencies=[OneTransfer],
    openapi_extra=_FORM,
    responses=errors(InvalidInput, PayloadTooLarge, QuotaExceeded),
)
async def create_file(
    request: Request,
    tenant: CurrentTenant,
    files: FilesDep,
    objects: ObjectsDep,
    settings: SettingsDep,
    replays: ReplaysDep,
) -> FileRead:
    """Upload a file; its lines are checked when a job is made from it."""
    async with received_upload(request, settings.max_file_bytes) as upload:
        key = replays.key_for("files", upload.purpose, upload.filename, upload.sha256)
        earlier = await replays.earlier(key)
        if earlier is not None:
            return _read(await files.get(earlier))
        file_id = new_file_id()
        object_key = file_object_key(tenant.id, file_id)
        kept = False
        try:
            await objects.put_file(upload.path, object_key)
            file = await files.create(
                file_id=file_id,
                filename=upload.filename,
                purpose=upload.purpose,
                num_bytes=upload.num_bytes,
                object_key=object_key,
                sha256=upload.sha256,
                max_total_bytes=settings.max_stored_bytes,
                idempotency=key,
            )
            kept = file.id == file_id
        finally:
            if not kept:
                await objects.delete(object_key)
    return _read(file)


@router.get("", responses=errors(InvalidInput))
async def list_files(
    files: FilesDep,
    after: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> ListPage[FileRead]:
    """List files, newest first unless `order` is asc."""
    page = await files.list(after=after, limit=limit, order=order, purpose=purpose)
    return ListPage.of([_read(file) for file in page], has_more=page.has_more)


@router.get("/{file_id}", responses=errors(NotFound))
async def retrieve_file(file_id: str, files: FilesDep) -> FileRead:
    """Show one file."""
    return _read(await files.get(file_id))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses=errors(NotFound)
    | {200: {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}},
)
async def retrieve_content(file_id: str, files: FilesDep, objects: ObjectsDep) -> Response:
    """The file's bytes."""
    file = await files.get(file_id)
    folder = tempfile.TemporaryDirectory(prefix="tandem-content-")
    local = Path(folder.name) / "content"
    try:
        await objects.get_file(file.object_key, local)
    except FileNotFoundError:
        folder.cleanup()
        raise NotFound(f"The content of file {file_id!r} is gone.", param="file_id") from None
    return FileResponse(
        local,
        media_type="application/octet-stream",
        filename=file.filename,
        background=BackgroundTask(folder.cleanup),
    )


@router.delete("/{file_id}", responses=errors(NotFound, Conflict))
async def delete_file(file_id: str, files: FilesDep, objects: ObjectsDep) -> Deleted:
    """Delete a file; jobs that already read it go on."""
    file = await files.delete(file_id)
    await objects.delete(file.object_key)
    return Deleted(id=file.id, object="file")
