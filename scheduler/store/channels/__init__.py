"""One kind of channel per file; `connect_channel` picks by URL."""

from __future__ import annotations

from scheduler.store.channel import Channel


def connect_channel(url: str) -> Channel:
    """A channel for `unix:///PATH` (embedded) or `redis://...`; connects at first use.

    Raises:
        ValueError: the URL is neither.
    """
    raise NotImplementedError
