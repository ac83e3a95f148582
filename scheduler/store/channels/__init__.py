"""One kind of channel per file; `connect_channel` picks by URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.store.channels.local import LocalChannel, socket_path
from scheduler.store.channels.redis import RedisChannel

if TYPE_CHECKING:
    from scheduler.store.channel import Channel


def connect_channel(url: str) -> Channel:
    """A channel for `unix:///PATH` (embedded) or `redis://...`; connects at first use.

    Raises:
        ValueError: the URL is neither.
    """
    if url.startswith("unix://"):
        return LocalChannel(socket_path(url))
    if url.startswith(("redis://", "rediss://")):
        return RedisChannel(url)
    raise ValueError(f"Channel URL {url!r} is neither unix:///PATH nor redis://HOST:PORT/DB.")
