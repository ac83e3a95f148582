"""Messages as bytes: msgpack, without fields that are at their default."""

from __future__ import annotations

from typing import TypeVar

import msgpack
from pydantic import TypeAdapter

from scheduler.domain.message import Message

MessageT = TypeVar("MessageT")


def encode(message: Message) -> bytes:
    """Message -> msgpack, without fields at their default but for the type."""
    fields = message.model_dump(mode="json", exclude_defaults=True)
    packed: bytes = msgpack.packb(message.model_dump(include={"type"}) | fields)
    return packed


def decode(adapter: TypeAdapter[MessageT], data: bytes) -> MessageT:
    """Msgpack -> message of the union behind `adapter`.

    Raises:
        ValueError: the bytes are no msgpack, or not such a message (pydantic.ValidationError).
    """
    return adapter.validate_python(msgpack.unpackb(data, strict_map_key=False))
