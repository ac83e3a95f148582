"""Length-prefixed msgpack on a local socket."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgpack

HEADER = struct.Struct("!I")
MAX_FRAME_BYTES = 64 * 2**20


async def read_frame(reader: asyncio.StreamReader) -> Any:
    """The next frame's content.

    Raises:
        ConnectionError: the other side closed, or sent what cannot be a frame.
    """
    try:
        (num_bytes,) = HEADER.unpack(await reader.readexactly(HEADER.size))
        if num_bytes > MAX_FRAME_BYTES:
            raise ConnectionError(f"A frame of {num_bytes} bytes is over {MAX_FRAME_BYTES}.")
        return msgpack.unpackb(await reader.readexactly(num_bytes))
    except asyncio.IncompleteReadError:
        raise ConnectionResetError("The other side closed the socket.") from None
    except ValueError as error:
        raise ConnectionError("The other side sent what is not msgpack.") from error


def pack_frame(content: object) -> bytes:
    """A frame, ready to be written.

    Raises:
        ValueError: it would be too long to be read.
    """
    packed: bytes = msgpack.packb(content)
    if len(packed) > MAX_FRAME_BYTES:
        raise ValueError(f"A frame of {len(packed)} bytes is over {MAX_FRAME_BYTES}.")
    return HEADER.pack(len(packed)) + packed
