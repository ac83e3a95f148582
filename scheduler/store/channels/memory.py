"""Streams and a registry in memory, with the semantics of Redis Streams."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

EntryId: TypeAlias = tuple[int, int]
MAX_STREAM_BYTES = 64 * 2**20  # a reader that far behind is gone
IDLE_STREAM_S = 3600.0  # names carry boot ids, so streams of dead processes stay behind


def parse_id(text: str) -> EntryId:
    """`ms-n`, or `ms` alone, as numbers that compare."""
    milliseconds, _, counter = text.partition("-")
    return int(milliseconds), int(counter or 0)


@dataclass(slots=True)
class Stream:
    """One bounded stream.

    Attributes:
        entries: (id, data), oldest first.
        num_bytes: size of all data in it.
        last_id: id of the newest entry ever.
        waiting: readers to wake at the next append.
    """

    entries: deque[tuple[EntryId, bytes]] = field(default_factory=deque)
    num_bytes: int = 0
    last_id: EntryId = (0, 0)
    used_s: float = 0.0
    waiting: set[asyncio.Event] = field(default_factory=set)

    def append(self, data: bytes, maxlen: int) -> str:
        """Add an entry; its id follows the wall clock, so ids also grow over restarts."""
        now_ms = time.time_ns() // 1_000_000
        self.last_id = max((now_ms, 0), (self.last_id[0], self.last_id[1] + 1))
        self.entries.append((self.last_id, data))
        self.num_bytes += len(data)
        while len(self.entries) > maxlen or self.num_bytes > MAX_STREAM_BYTES:
            self.num_bytes -= len(self.entries.popleft()[1])
        for event in self.waiting:
            event.set()
        return f"{self.last_id[0]}-{self.last_id[1]}"

    def after(self, last_id: EntryId, count: int) -> list[tuple[EntryId, bytes]]:
        """Up to `count` entries newer than `last_id`, oldest first; looks at no older ones."""
        newer: list[tuple[EntryId, bytes]] = []
        for entry in reversed(self.entries):
            if entry[0] <= last_id:
                break
            newer.append(entry)
        newer.reverse()
        return newer[:count]


class Memory:
    """All streams and announcements of one broker."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}
        self._workers: dict[str, tuple[float, bytes]] = {}
        self._swept_s = time.monotonic()

    def append(self, stream: str, data: bytes, maxlen: int) -> str:
        """Add an entry and wake the stream's readers."""
        self._drop_idle()
        return self._stream(stream).append(data, maxlen)

    async def read(
        self, streams: Mapping[str, str], block_ms: int, count: int
    ) -> list[tuple[str, str, bytes]]:
        """Entries after the given ids; waits up to `block_ms` for the first."""
        arrived = asyncio.Event()
        for name in streams:
            self._stream(name).waiting.add(arrived)
        try:
            found = self._newer(streams, count)
            if not found and block_ms > 0:
                async with asyncio.timeout(block_ms / 1000):
                    await arrived.wait()
                found = self._newer(streams, count)
        except TimeoutError:
            return []
        finally:
            for name in streams:
                self._stream(name).waiting.discard(arrived)
        return found

    def announce(self, worker_id: str, info: bytes, ttl_s: float) -> None:
        """Enter or refresh a worker."""
        self._workers[worker_id] = (time.monotonic() + ttl_s, info)

    def withdraw(self, worker_id: str) -> None:
        """Remove a worker."""
        self._workers.pop(worker_id, None)

    def workers(self) -> list[bytes]:
        """What the living workers announced, by worker id."""
        now_s = time.monotonic()
        self._workers = {id_: kept for id_, kept in self._workers.items() if kept[0] > now_s}
        return [self._workers[worker_id][1] for worker_id in sorted(self._workers)]

    def _stream(self, name: str) -> Stream:
        stream = self._streams.setdefault(name, Stream())
        stream.used_s = time.monotonic()
        return stream

    def _newer(self, streams: Mapping[str, str], count: int) -> list[tuple[str, str, bytes]]:
        return [
            (name, f"{entry_id[0]}-{entry_id[1]}", data)
            for name, last_id in streams.items()
            for entry_id, data in self._stream(name).after(parse_id(last_id), count)
        ]

    def _drop_idle(self) -> None:
        now_s = time.monotonic()
        if now_s - self._swept_s < IDLE_STREAM_S / 60:
            return
        self._swept_s = now_s
        for name, stream in list(self._streams.items()):
            if not stream.waiting and now_s - stream.used_s > IDLE_STREAM_S:
                del self._streams[name]
