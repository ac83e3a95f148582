"""The embedded channel: a broker on a Unix socket, and its client."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from scheduler.domain.message_codec import decode, encode
from scheduler.domain.messages import WorkerInfo
from scheduler.store.channel import DEFAULT_MAXLEN, PATIENCE_S, WORKER_INFO, Channel, ChannelDown
from scheduler.store.channels.frames import pack_frame, read_frame
from scheduler.store.channels.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping

RETRY_S = 0.05
MAX_SOCKET_PATH_BYTES = 107  # Linux: sun_path without its final zero


def socket_path(url: str) -> Path:
    """The path in `unix:///PATH`."""
    return Path(url.removeprefix("unix://"))


class LocalBroker:
    """Serves one `Memory` on a socket that only its owner can open. Use `async with`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory = Memory()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: another broker listens there, or the path is too long for a socket.
        """
        self._server = await asyncio.start_unix_server(self._serve, sock=_bind(self._path))

    async def stop(self) -> None:
        """Close the socket and all connections; what was in the streams is gone."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._path.unlink(missing_ok=True)
        self._server = None

    async def __aenter__(self) -> LocalBroker:
        await self.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        reads: set[asyncio.Task[None]] = set()
        try:
            while True:
                call_id, operation, arguments = await read_frame(reader)
                if operation == "read":  # may wait, so it gets a task of its own
                    read = asyncio.create_task(self._answer_read(writer, call_id, arguments))
                    reads.add(read)
                    read.add_done_callback(reads.discard)
                else:
                    writer.write(pack_frame([call_id, self._run(operation, arguments)]))
                    await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the broker stops
        finally:
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
            writer.close()
            self._connections.discard(task)

    async def _answer_read(
        self, writer: asyncio.StreamWriter, call_id: int, arguments: list[Any]
    ) -> None:
        found = await self._memory.read(*arguments)
        writer.write(pack_frame([call_id, found]))
        with suppress(ConnectionError):
            await writer.drain()

    def _run(self, operation: str, arguments: list[Any]) -> object:
        match operation:
            case "append":
                return self._memory.append(*arguments)
            case "announce":
                self._memory.announce(*arguments)
                return None
            case "withdraw":
                self._memory.withdraw(*arguments)
                return None
            case "workers":
                return self._memory.workers()
        raise ConnectionError(f"Unknown operation {operation!r}.")


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise OSError(f"{path} is too long for a socket; choose a shorter data folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            if path.exists() and probe.connect_ex(os.fspath(path)) == 0:
                raise OSError(f"Another broker listens on {path}.")
        path.unlink(missing_ok=True)  # a killed broker's
        mask = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(mask)
    except OSError:
        listener.close()
        raise
    return listener


class _Connection:
    """One connection that carries many calls at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._num_calls = 0
        self._receiving = asyncio.create_task(self._receive(reader))

    @property
    def is_open(self) -> bool:
        """Whether answers can still arrive."""
        return not self._receiving.done()

    async def call(self, operation: str, arguments: list[object]) -> Any:
        """Send a call and wait for its answer.

        Raises:
            ConnectionError: the connection broke; the call may or may not have been done.
        """
        if not self.is_open:
            raise ConnectionResetError("The broker closed the connection.")
        self._num_calls += 1
        call_id = self._num_calls
        answer = self._answers[call_id] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(pack_frame([call_id, operation, arguments]))
            await self._writer.drain()
            return await answer
        finally:
            self._answers.pop(call_id, None)

    async def close(self) -> None:
        """Break the connection; waiting calls end with ConnectionError."""
        self._receiving.cancel()
        await asyncio.gather(self._receiving, return_exceptions=True)

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                call_id, result = await read_frame(reader)
                answer = self._answers.get(call_id)
                if answer is not None and not answer.done():
                    answer.set_result(result)
        except ConnectionError:
            pass  # the calls that wait are told below
        finally:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError("The broker closed the connection."))
            self._writer.close()


class LocalChannel(Channel):
    """Client of a `LocalBroker`; connects when needed, and again when the broker restarted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    @override
    async def append(self, stream: str, data: bytes, maxlen: int = DEFAULT_MAXLEN) -> str:
        entry_id: str = await self._call("append", stream, data, maxlen)
        return entry_id

    @override
    async def read(
        self, streams: Mapping[str, str], block_ms: int = 0, count: int = 100
    ) -> list[tuple[str, str, bytes]]:
        wait_s = block_ms / 1000
        found = await self._call("read", dict(streams), block_ms, count, wait_s=wait_s)
        return [(stream, entry_id, data) for stream, entry_id, data in found]

    @override
    async def announce(self, info: WorkerInfo, ttl_s: float = 6.0) -> None:
        await self._call("announce", info.worker_id, encode(info), ttl_s)

    @override
    async def workers(self) -> list[WorkerInfo]:
        return [decode(WORKER_INFO, announced) for announced in await self._call("workers")]

    @override
    async def withdraw(self, worker_id: str) -> None:
        await self._call("withdraw", worker_id)

    @override
    async def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def _call(self, operation: str, *arguments: object, wait_s: float = 0.0) -> Any:
        """Call the broker; a broken connection is made anew for up to `PATIENCE_S`."""
        clock = asyncio.get_running_loop().time
        give_up_s: float | None = None
        while True:
            try:
                async with asyncio.timeout(PATIENCE_S + wait_s):
                    connection = await self._connect()
                    return await connection.call(operation, list(arguments))
            except OSError as error:  # also ConnectionError and TimeoutError
                give_up_s = give_up_s or clock() + PATIENCE_S
                if self._closed or clock() >= give_up_s:
                    raise ChannelDown(
                        "The message channel is down; try again in a few seconds."
                    ) from error
            await asyncio.sleep(RETRY_S)

    async def _connect(self) -> _Connection:
        async with self._connecting:
            if self._closed:
                raise ConnectionResetError("This channel is closed.")
            if self._connection is None or not self._connection.is_open:
                self._connection = _Connection(
                    *await asyncio.open_unix_connection(os.fspath(self._path))
                )
            return self._connection
