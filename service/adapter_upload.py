"""The form of an adapter import -> its files in a folder of ours; nothing stays behind.

The files come packed into one, as the id of such an upload, or one by one. A coded adapter is one
file by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from starlette.datastructures import UploadFile

from scheduler.artefact.archive import unpack
from scheduler.artefact.intake import Intake
from scheduler.domain.adapter import ARCHIVE_FILE, ARCHIVE_MAGIC
from scheduler.domain.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.datastructures import FormData
    from starlette.requests import Request

    from scheduler.store.files import TenantFiles
    from scheduler.store.objects import ObjectStore

CHUNK_BYTES = 1 << 20
_FIELDS = frozenset({"model", "name", "file", "file_id", "files"})
_SOURCES = (
    "Send 'file' (a .zip, .tar.gz or .tar, or a coded adapter), 'file_id', or both 'files' of the "
    "peft folder."
)


@dataclass(frozen=True, slots=True)
class AdapterUpload:
    """An adapter's files, not looked into yet.

    Attributes:
        fields: the form's text fields.
        sha256: digest of what was sent, for idempotency.
    """

    folder: Path
    fields: dict[str, str]
    sha256: str


@asynccontextmanager
async def received_adapter(
    request: Request, files: TenantFiles, objects: ObjectStore, max_bytes: int
) -> AsyncIterator[AdapterUpload]:
    """Read the form and unpack; the files exist for as long as the block lasts.

    Raises:
        InvalidInput: a field is missing or wrong, or the archive is hostile.
        NotFound: the tenant has no such uploaded file.
        PayloadTooLarge: the files are over `max_bytes`.
    """
    async with request.form(max_files=2, max_fields=8, max_part_size=64 * 1024) as form:
        fields, parts = _fields(form), _parts(form)
        with tempfile.TemporaryDirectory(prefix="tandem-adapter-") as scratch:
            folder = Path(scratch) / "adapter"
            folder.mkdir()
            intake = Intake(folder, max_bytes)
            if "file_id" in fields:
                archive = await _fetch(fields["file_id"], Path(scratch), files, objects)
                sha256 = await asyncio.to_thread(_unpack, archive, intake)
            elif form.get("file") is not None:
                archive = Path(scratch) / "archive"
                await asyncio.to_thread(_save, parts[0].file, archive)
                sha256 = await asyncio.to_thread(_unpack, archive, intake)
            else:
                sha256 = await asyncio.to_thread(_take_parts, parts, intake)
            yield AdapterUpload(folder, fields, sha256)


def _fields(form: FormData) -> dict[str, str]:
    for name in form:
        if name not in _FIELDS:
            raise InvalidInput(f"{name[:64]!r}: Unknown field; remove it.", param=name[:64])
    texts = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    fields = dict(texts)
    if len(fields) != len(texts) or {"file", "files"} & fields.keys():
        raise InvalidInput(f"A field comes twice, or a file as text. {_SOURCES}", param="file")
    return fields


def _parts(form: FormData) -> list[UploadFile]:
    """The uploaded parts; exactly one kind of source is there."""
    single = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
    several = [part for part in form.getlist("files") if isinstance(part, UploadFile)]
    if bool(single) + bool(several) + ("file_id" in form) != 1 or len(single) > 1:
        raise InvalidInput(_SOURCES, param="file")
    return single or several


async def _fetch(file_id: str, scratch: Path, files: TenantFiles, objects: ObjectStore) -> Path:
    file = await files.get(file_id)
    archive = scratch / "archive"
    try:
        await objects.get_file(file.object_key, archive)
    except FileNotFoundError:
        raise NotFound(f"The content of file {file_id!r} is gone.", param="file_id") from None
    return archive


def _save(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as file:
        for chunk in _chunks(source):
            file.write(chunk)


def _unpack(archive: Path, intake: Intake) -> str:
    with archive.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        is_coded = file.read(len(ARCHIVE_MAGIC)) == ARCHIVE_MAGIC
    if is_coded:
        archive.rename(intake.folder / ARCHIVE_FILE)
    else:
        unpack(archive, intake)
        archive.unlink()
    return sha256


def _take_parts(parts: list[UploadFile], intake: Intake) -> str:
    digest = hashlib.sha256()
    for part in sorted(parts, key=lambda part: part.filename or ""):
        name = part.filename or ""
        digest.update(f"{len(name)}:{name}:{part.size}:".encode())
        intake.take(name, _digested(_chunks(part.file), digest))
    intake.check_complete()
    return digest.hexdigest()


def _digested(chunks: Iterator[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    source.seek(0)
    while chunk := source.read(CHUNK_BYTES):
        yield chunk
