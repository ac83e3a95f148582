"""The cluster's channel: Redis Streams, and keys with a time to live as the registry."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import redis.asyncio
import redis.exceptions
from typing_extensions import override

from scheduler.domain.message_codec import decode, encode
from scheduler.domain.messages import WorkerInfo
from scheduler.store.channel import DEFAULT_MAXLEN, PATIENCE_S, WORKER_INFO, Channel, ChannelDown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

T = TypeVar("T")

RETRY_S = 0.1
IDLE_STREAM_S = 3600  # names carry boot ids, so streams of dead processes stay behind
FIELD = b"d"
# Away, loading, out of memory, out of disk, or a replica that must not be written: all may pass.
BROKEN = (redis.exceptions.RedisError, OSError)


class RedisChannel(Channel):
    """Client of a Redis server that may be shared with others: all keys carry a prefix."""

    def __init__(self, url: str, prefix: str = "tandem:") -> None:
        self._redis = redis.asyncio.Redis.from_url(url, socket_timeout=None, protocol=2)
        self._prefix = prefix
        self._closed = False

    @override
    async def append(self, stream: str, data: bytes, maxlen: int = DEFAULT_MAXLEN) -> str:
        async def run() -> str:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(self._key(stream), {FIELD: data}, maxlen=maxlen, approximate=True)
                pipe.expire(self._key(stream), IDLE_STREAM_S)
                entry_id, _ = await pipe.execute()
            return str(entry_id.decode())

        return await self._retried(run)

    @override
    async def read(
        self, streams: Mapping[str, str], block_ms: int = 0, count: int = 100
    ) -> list[tuple[str, str, bytes]]:
        names = {self._key(name).encode(): name for name in streams}
        cursors: dict[Any, Any] = {self._key(name): id_ for name, id_ in streams.items()}

        async def run() -> Any:
            return await self._redis.xread(cursors, count=count, block=block_ms or None)

        found = await self._retried(run, wait_s=block_ms / 1000)
        return [
            (names[key], entry_id.decode(), fields[FIELD])
            for key, entries in found
            for entry_id, fields in entries
        ]

    @override
    async def announce(self, info: WorkerInfo, ttl_s: float = 6.0) -> None:
        async def run() -> None:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.set(self._key(f"w:{info.worker_id}"), encode(info), px=int(ttl_s * 1000))
                pipe.sadd(self._key("workers"), info.worker_id)
                await pipe.execute()

        await self._retried(run)

    @override
    async def workers(self) -> list[WorkerInfo]:
        async def run() -> list[WorkerInfo]:
            members: Any = await self._redis.smembers(self._key("workers"))
            ids = sorted(member.decode() for member in members)
            keys = [self._key(f"w:{id_}") for id_ in ids]
            values: list[Any] = await self._redis.mget(keys) if ids else []
            gone = [id_ for id_, value in zip(ids, values, strict=True) if value is None]
            if gone:
                await self._redis.srem(self._key("workers"), *gone)
            return [decode(WORKER_INFO, value) for value in values if value is not None]

        return await self._retried(run)

    @override
    async def withdraw(self, worker_id: str) -> None:
        async def run() -> None:
            await self._redis.delete(self._key(f"w:{worker_id}"))

        await self._retried(run)

    @override
    async def close(self) -> None:
        self._closed = True
        await self._redis.aclose()

    def _key(self, name: str) -> str:
        return self._prefix + name

    async def _retried(self, run: Callable[[], Awaitable[T]], wait_s: float = 0.0) -> T:
        """Do `run`; while the connection is broken try again, for up to `PATIENCE_S`."""
        clock = asyncio.get_running_loop().time
        give_up_s: float | None = None
        while True:
            try:
                if self._closed:
                    raise ConnectionResetError("This channel is closed.")
                async with asyncio.timeout(PATIENCE_S + wait_s):
                    return await run()
            except BROKEN as error:
                give_up_s = give_up_s or clock() + PATIENCE_S
                if self._closed or clock() >= give_up_s:
                    raise ChannelDown(
                        "The message channel is down; try again in a few seconds."
                    ) from error
            await asyncio.sleep(RETRY_S)
