"""An uploaded archive -> the two files of an adapter, whatever the archive claims about itself.

Kinds are told by their first bytes. Sizes are counted while bytes come out, never believed.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING, BinaryIO

from scheduler.artefact.tar_stream import take_tar
from scheduler.artefact.zip_archive import take_zip
from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scheduler.artefact.intake import Intake

MAX_RATIO = 100  # safetensors hardly compress at all
FREE_BYTES = 1 << 20  # below this a ratio tells nothing
CHUNK_BYTES = 1 << 18
_GZIP, _ZIP = b"\x1f\x8b", b"PK"
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, tarfile.HeaderError,
            UnicodeError, RuntimeError)  # fmt: skip


def unpack(archive: Path, intake: Intake) -> None:
    """Take both files out of a .zip, .tar.gz or .tar.

    Raises:
        InvalidInput: it is damaged or hostile, or holds anything else.
        PayloadTooLarge: it holds too much.
    """
    limit_bytes = max(FREE_BYTES, MAX_RATIO * archive.stat().st_size)
    try:
        with archive.open("rb") as file:
            head = file.read(512)
            file.seek(0)
            if head.startswith(_ZIP):
                take_zip(file, intake, limit_bytes)
            elif head.startswith(_GZIP):
                take_tar(_within(_inflated(file), limit_bytes), intake)
            elif head[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC):
                take_tar(iter(lambda: file.read(CHUNK_BYTES), b""), intake)
            else:
                raise _refused("it is neither .zip nor .tar.gz nor .tar")
    except _DAMAGED:
        raise _refused("it is damaged, or uses a feature that is not read") from None
    intake.check_complete()


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    """The bytes inside a gzip stream of one member, at most CHUNK_BYTES at a time."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    packed = file.read(CHUNK_BYTES)
    while packed and not inflater.eof:
        chunk = inflater.decompress(packed, CHUNK_BYTES)
        if chunk:
            yield chunk
        packed = inflater.unconsumed_tail or file.read(CHUNK_BYTES)
    if not inflater.eof or inflater.unused_data or packed:
        raise _refused("its gzip stream is cut short, or something follows it")


def _within(chunks: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    num_bytes = 0
    for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > limit_bytes:
            raise _refused(f"it expands to more than {MAX_RATIO} times its size")
        yield chunk


def _refused(reason: str) -> InvalidInput:
    return InvalidInput(f"The archive is refused: {reason}.", param="file")
