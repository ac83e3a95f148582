"""The outside of a coded adapter: magic, SHA-256 of the rest, header length, JSON header, payload.

Whether a file is whole, and of which base model, is told without knowing any codec.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, BinaryIO

from scheduler.domain.adapter import ARCHIVE_MAGIC
from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = struct.Struct("<8s32sI")
MAX_HEADER_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20


def read_head(file: BinaryIO) -> tuple[bytes, bytes]:
    """(the header's bytes, the digest that the file claims); the file then stands at its payload.

    Raises:
        InvalidInput: it is no coded adapter, or its header is too long.
    """
    prefix = file.read(PREFIX.size)
    if len(prefix) < PREFIX.size or not prefix.startswith(ARCHIVE_MAGIC):
        raise InvalidInput("This is not an adapter archive.", param="file")
    _, digest, length = PREFIX.unpack(prefix)
    if length > MAX_HEADER_BYTES:
        raise InvalidInput(f"The archive has a header of {length} bytes.", param="file")
    return file.read(length), digest


def check_coded_file(path: Path, base_digest: str) -> None:
    """Refuse a file that is torn, altered, or of other base weights; its payload is not decoded.

    Raises:
        InvalidInput: with the first thing that is wrong.
    """
    with path.open("rb") as file:
        header, digest = read_head(file)
        sha256 = hashlib.sha256(header)
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
    if sha256.digest() != digest:
        raise InvalidInput("The archive is torn or altered: its digest differs.", param="file")
    try:
        read = json.loads(header)
    except (ValueError, RecursionError):
        raise InvalidInput("The archive's header is not JSON.", param="file") from None
    if not isinstance(read, dict) or read.get("base_digest") != base_digest:
        raise InvalidInput("The archive belongs to other weights than this base.", param="file")
