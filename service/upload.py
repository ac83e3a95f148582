"""Multipart upload -> one temporary file, counted and digested; nothing stays behind."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from starlette.datastructures import UploadFile

from scheduler.domain.errors import InvalidInput, PayloadTooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.datastructures import FormData
    from starlette.requests import Request

CHUNK_BYTES = 1 << 20
MAX_NAME_CHARS = 255
PURPOSES = ("fine-tune", "assistants", "batch", "vision", "user_data", "evals")


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file on this machine's disk."""

    path: Path
    filename: str
    purpose: str
    num_bytes: int
    sha256: str


@asynccontextmanager
async def received_upload(request: Request, max_bytes: int) -> AsyncIterator[Upload]:
    """Read the form; the file exists for as long as the block lasts.

    Raises:
        InvalidInput: a field is missing or wrong.
        PayloadTooLarge: the file is over `max_bytes`.
    """
    async with request.form(max_files=1, max_fields=8, max_part_size=64 * 1024) as form:
        purpose, part = _purpose(form), _file(form)
        if part.size is not None and part.size > max_bytes:
            raise PayloadTooLarge(
                f"The file has {part.size} bytes; the limit is {max_bytes}.", param="file"
            )
        with tempfile.TemporaryDirectory(prefix="tandem-upload-") as folder:
            path = Path(folder) / "upload"
            num_bytes, sha256 = await asyncio.to_thread(_copy, part.file, path)
            if num_bytes == 0:
                raise InvalidInput("The file is empty; send at least one line.", param="file")
            yield Upload(path, _filename(part), purpose, num_bytes, sha256)


def _purpose(form: FormData) -> str:
    for name in form:
        if name.startswith("expires_after"):
            raise InvalidInput("'expires_after' is not supported; leave it out.", param=name)
    purpose = form.get("purpose")
    if purpose not in PURPOSES:
        raise InvalidInput(
            f"'purpose' must be one of {', '.join(PURPOSES)}; for training it is fine-tune.",
            param="purpose",
        )
    return str(purpose)


def _file(form: FormData) -> UploadFile:
    part = form.get("file")
    if not isinstance(part, UploadFile):
        raise InvalidInput(
            "Send the file as the form field 'file' of a multipart/form-data body.", param="file"
        )
    return part


def _filename(part: UploadFile) -> str:
    """The last part of the client's name for it, printable and short; only ever shown."""
    name = PurePosixPath((part.filename or "").replace("\\", "/")).name
    shown = "".join(character for character in name if character.isprintable())
    return shown[-MAX_NAME_CHARS:] or "upload"


def _copy(source: IO[bytes], target: Path) -> tuple[int, str]:
    digest, num_bytes = hashlib.sha256(), 0
    source.seek(0)
    with target.open("wb") as file:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
            file.write(chunk)
    return num_bytes, digest.hexdigest()
