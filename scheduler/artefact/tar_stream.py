"""A tar read as a stream of 512-byte blocks: plain files and folders, nothing else.

The standard library's reader holds extended headers in memory, whatever size they claim, and
follows links; this one knows neither. Extended headers of pax are skipped, so a name is what the
plain header says.
"""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.artefact.intake import Intake

MAX_EXTENDED_BYTES = 1 << 14
_BLOCK = tarfile.BLOCKSIZE
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)


class _Blocks:
    """Reads exact numbers of bytes out of chunks of any size."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._held = b""

    def some(self, most: int) -> bytes:
        """Between one and `most` bytes.

        Raises:
            EOFError: there are none.
        """
        if not self._held:
            self._held = next(self._chunks, b"")
            if not self._held:
                raise EOFError
        taken, self._held = self._held[:most], self._held[most:]
        return taken

    def pieces(self, num_bytes: int) -> Iterator[bytes]:
        """Exactly `num_bytes`, as they come."""
        while num_bytes:
            piece = self.some(num_bytes)
            num_bytes -= len(piece)
            yield piece

    def skip(self, num_bytes: int) -> None:
        """Read past some bytes."""
        for _ in self.pieces(num_bytes):
            pass

    def rest(self) -> Iterator[bytes]:
        """All that is left."""
        yield self._held
        yield from self._chunks


def take_tar(chunks: Iterator[bytes], intake: Intake) -> None:
    """Take in every member up to the end mark, and see that only padding follows.

    Raises:
        InvalidInput: a member has no place.
        EOFError: the stream is cut short.
        tarfile.HeaderError: a header is damaged.
    """
    blocks = _Blocks(chunks)
    while any(head := b"".join(blocks.pieces(_BLOCK))):
        member = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
        if member.size < 0:
            raise tarfile.HeaderError("negative size")
        _take_member(member, blocks, intake)
        blocks.skip(-member.size % _BLOCK)
    if any(map(any, blocks.rest())):
        raise _refused("something follows its end mark")


def _take_member(member: tarfile.TarInfo, blocks: _Blocks, intake: Intake) -> None:
    if member.type in _PAX:
        if member.size > MAX_EXTENDED_BYTES:
            raise _refused(f"it has an extended header of {member.size} bytes")
        blocks.skip(member.size)
    elif member.type == tarfile.DIRTYPE and member.size == 0:
        intake.admit(member.name, is_folder=True)
    elif member.type in _FILES:
        intake.take(member.name, blocks.pieces(member.size))
    else:
        raise _refused(f"{member.name[:100]!r} is a link or no plain file")


def _refused(reason: str) -> InvalidInput:
    return InvalidInput(f"The archive is refused: {reason}.", param="file")
