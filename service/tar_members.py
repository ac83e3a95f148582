"""Files -> the bytes of a tar, streamed; its length is known before the first one."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHUNK_BYTES = 1 << 20
_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file to be: its path inside the tar, its size, and a way to its bytes."""

    name: str
    num_bytes: int
    open: Callable[[], BinaryIO]


def tar_length(members: Sequence[TarMember]) -> int:
    """Bytes of the tar."""
    blocks = sum(1 + -(-member.num_bytes // tarfile.BLOCKSIZE) for member in members)
    return blocks * tarfile.BLOCKSIZE + len(_END)


def tar_chunks(members: Sequence[TarMember]) -> Iterator[bytes]:
    """The tar; blocking.

    Raises:
        OSError: a file has another length than was announced, so the answer must break off.
    """
    for member in members:
        header = tarfile.TarInfo(member.name)
        header.size = left_bytes = member.num_bytes
        yield header.tobuf(tarfile.GNU_FORMAT)
        with member.open() as file:
            while chunk := file.read(CHUNK_BYTES):
                left_bytes -= len(chunk)
                yield chunk
        if left_bytes:
            raise OSError(f"{member.name} is not as long as it was")
        yield bytes(-member.num_bytes % tarfile.BLOCKSIZE)
    yield _END
