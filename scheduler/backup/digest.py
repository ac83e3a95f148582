"""A file whose digest is known once it has been read."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, BinaryIO

from scheduler.backup.manifest import Member

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_BYTES = 2**20


class DigestReader(io.RawIOBase):
    """Reads from another file and digests what passes.

    Args:
        source: is read from where it stands.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer; 0 at the end."""
        view = memoryview(buffer)
        chunk = self._source.read(len(view))
        view[: len(chunk)] = chunk
        self._sha256.update(chunk)
        self._size_bytes += len(chunk)
        return len(chunk)

    def member(self) -> Member:
        """Size and digest of what was read so far."""
        return Member(size_bytes=self._size_bytes, sha256=self._sha256.hexdigest())


def digest_of(source: BinaryIO) -> Member:
    """Read a file to its end for its size and digest."""
    reader = DigestReader(source)
    while reader.read(READ_BYTES):
        pass
    return reader.member()
