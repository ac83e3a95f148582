"""The pipe between an agent and its engine child, both ends, and the child's life.

Each message is four bytes of length (big endian) and that many bytes of msgpack. The agent's end
is asyncio; the engine's end blocks, because the engine is one plain loop. When either end closes
the other one is told: an engine whose agent is gone has nobody to work for, and ends.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import sys
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

from scheduler.domain.message_codec import decode, encode
from scheduler.domain.messages import FROM_ENGINE, TO_ENGINE, Message
from scheduler.processes import tied_to_parent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scheduler.domain.messages import FromEngine, ToEngine

ENGINE_FD_VARIABLE = "TANDEM_ENGINE_FD"
MAX_MESSAGE_BYTES = 64 * 2**20  # a JSON Schema of every plug-in is far below this
_LENGTH = struct.Struct(">I")
_RECEIVE_BYTES = 2**20


class ConnectionClosed(Exception):
    """The other end of the pipe is gone; nothing more can be said or heard."""


class EngineConnection:
    """The engine's end: `poll` for orders, `send` reports; neither ever waits for the agent."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._received = bytearray()
        self._outgoing: SimpleQueue[FromEngine | None] = SimpleQueue()
        self._closed = threading.Event()
        self._writer = threading.Thread(target=self._write_loop, name="reports", daemon=True)
        self._writer.start()

    @classmethod
    def from_environment(cls) -> EngineConnection:
        """Take over the file descriptor that the agent left in the environment."""
        return cls(socket.socket(fileno=int(os.environ.pop(ENGINE_FD_VARIABLE))))

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """Return every order that has arrived; wait up to `timeout_s` for the first one.

        Raises:
            ConnectionClosed: the agent is gone and all it said has been returned.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            is_open = self._receive(max(0.0, deadline_s - time.monotonic()))
            orders = [decode(TO_ENGINE, body) for body in _split(self._received)]
            if orders:
                return orders
            if not is_open:
                raise ConnectionClosed("The agent has closed the pipe.")
            if time.monotonic() >= deadline_s:
                return []

    def send(self, message: FromEngine) -> None:
        """Queue a report; a thread of its own encodes and writes it.

        Raises:
            ConnectionClosed: the agent is gone.
        """
        if self._closed.is_set():
            raise ConnectionClosed("The agent has closed the pipe.")
        self._outgoing.put(message)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write out what is queued, then close the pipe."""
        self._outgoing.put(None)
        self._writer.join(timeout_s)
        self._closed.set()
        self._socket.close()

    def _receive(self, timeout_s: float) -> bool:
        """Take in all that is there, waiting for the first byte; whether the pipe is open."""
        wait_s = timeout_s
        while select.select([self._socket], [], [], wait_s)[0]:
            wait_s = 0.0
            try:
                chunk = self._socket.recv(_RECEIVE_BYTES)
            except ConnectionError:
                return False
            if not chunk:
                return False
            self._received += chunk
        return not self._closed.is_set()

    def _write_loop(self) -> None:
        while (message := self._outgoing.get()) is not None:
            try:
                self._write(_frame(message))
            except OSError:
                self._closed.set()
                return

    def _write(self, frame: bytes) -> None:
        rest = memoryview(frame)
        while rest:
            select.select([], [self._socket], [])
            rest = rest[self._socket.send(rest) :]


class EngineProcess:
    """The agent's end: one engine child, from its start to its end."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> EngineProcess:
        """Start a child, tied to this process and to the pipe.

        Args:
            command: program and arguments.
            environment: added to this process's own.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=os.environ | environment | {ENGINE_FD_VARIABLE: str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C reaches the agent, which then drains the engine
                preexec_fn=tied_to_parent(),
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def send(self, message: ToEngine) -> None:
        """Hand the child an order; dropped when the child is already dead."""
        if self._writer.is_closing():
            return
        try:
            self._writer.write(_frame(message))
            await self._writer.drain()
        except ConnectionError:  # `receive` ends too, and there the death is dealt with
            return

    async def receive(self) -> tuple[FromEngine, bytes] | None:
        """Return the child's next report and its encoded form; None after the last one.

        Raises:
            ConnectionClosed: the child sent a message over the limit.
        """
        try:
            head = await self._reader.readexactly(_LENGTH.size)
            body = await self._reader.readexactly(_checked_length(head))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return decode(FROM_ENGINE, body), body

    def close(self) -> None:
        """Close the pipe: the child ends as soon as it notices."""
        self._writer.close()

    async def stop(self, timeout_s: float = 5.0) -> int:
        """Close the pipe, give the child `timeout_s` to end, then kill it; its exit status."""
        self._writer.close()
        try:
            return await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()


def engine_command() -> tuple[str, ...]:
    """Program and arguments of the real engine child."""
    return (sys.executable, "-m", "workers.engine_child")


def thread_environment(num_threads: int) -> dict[str, str]:
    """Variables that must be set before torch is imported.

    A passive wait lets two engines share the cores. Before it a thread spins for about 0.1 ms:
    a step has a hundred parallel regions, and waking a sleeping thread for each doubles it.
    """
    return {
        "OMP_NUM_THREADS": str(num_threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
    }


def group_environment(num_ranks: int) -> dict[str, str]:
    """Variables that must be set before Python starts, for ranks to decide alike.

    A set of strings is walked in the order of their hashes, which must be the same in each process.
    """
    return {} if num_ranks == 1 else {"PYTHONHASHSEED": "0"}


def _frame(message: Message) -> bytes:
    body = encode(message)
    return _LENGTH.pack(len(body)) + body


def _checked_length(head: bytes | bytearray) -> int:
    length: int = _LENGTH.unpack_from(head)[0]
    if length > MAX_MESSAGE_BYTES:
        raise ConnectionClosed(f"A message of {length} bytes is over {MAX_MESSAGE_BYTES}.")
    return length


def _split(received: bytearray) -> Iterator[bytes]:
    """Cut whole messages off the front of `received`, in place."""
    while len(received) >= _LENGTH.size:
        end = _LENGTH.size + _checked_length(received)
        if len(received) < end:
            return
        body = bytes(received[_LENGTH.size : end])
        del received[:end]
        yield body


__all__ = [
    "ConnectionClosed",
    "EngineConnection",
    "EngineProcess",
    "engine_command",
    "group_environment",
    "thread_environment",
]
