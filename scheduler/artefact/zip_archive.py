"""Zip archives. Their directory is bounded before the library that reads it sees it."""

from __future__ import annotations

import os
import stat
import zipfile
from typing import TYPE_CHECKING, BinaryIO

from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.artefact.intake import Intake

CHUNK_BYTES = 1 << 18
MAX_DIRECTORY_BYTES = 1 << 14
_END, _END_BYTES = b"PK\x05\x06", 22
_WIDE_LOCATOR, _WIDE_LOCATOR_BYTES = b"PK\x06\x07", 20
_ENCRYPTED = 1


def take_zip(file: BinaryIO, intake: Intake, limit_bytes: int) -> None:
    """Take in every member.

    Args:
        file: the archive.
        intake: where members go.
        limit_bytes: most bytes of all members together.

    Raises:
        InvalidInput: a member has no place, or the archive plays tricks.
        zipfile.BadZipFile: it is damaged.
    """
    _check_directory(file)
    left_bytes = limit_bytes
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            _check_member(member)
            left_bytes -= member.file_size
            if left_bytes < 0:
                raise _refused("it expands to far more than its own size")
            if member.is_dir():
                intake.admit(member.orig_filename, is_folder=True)
            else:
                intake.take(member.orig_filename, _chunks(archive, member))


def _check_directory(file: BinaryIO) -> None:
    """Bound the directory, which the library reads whole. Zip64 and comments are refused.

    So both readers, this one and the library, see the same end record: the last 22 bytes.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END_BYTES - _WIDE_LOCATOR_BYTES))
    tail = file.read()
    file.seek(0)
    end = tail[-_END_BYTES:]
    if not end.startswith(_END) or end[-2:] != b"\0\0":
        raise _refused("it does not end as a zip without a comment does")
    if tail[:-_END_BYTES][-_WIDE_LOCATOR_BYTES:].startswith(_WIDE_LOCATOR):
        raise _refused("zip64 is not read; an adapter has less than 4 GiB")
    directory_bytes = int.from_bytes(end[12:16], "little")
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise _refused(f"its directory has {directory_bytes} bytes; two files need a few hundred")


def _check_member(member: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(f"{member.filename[:100]!r} is a link or no file")
    if member.flag_bits & _ENCRYPTED:
        raise _refused("it is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused("it is neither stored nor deflated")


def _chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The member's bytes; the library stops at the size that the directory claims."""
    with archive.open(member) as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk


def _refused(reason: str) -> InvalidInput:
    return InvalidInput(f"The archive is refused: {reason}.", param="file")
