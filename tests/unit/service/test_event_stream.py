"""Event streams against a bare ASGI server side: slow clients, shutdown, leaving clients."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import OperationalError

from scheduler.domain.errors import Overloaded, WorkerLost
from service.event_stream import DONE, PING, EventStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Client:
    """The other side of an ASGI connection.

    Attributes:
        takes: bodies it takes before it stops reading; None for all.
    """

    def __init__(self, takes: int | None = None) -> None:
        self.bodies: list[bytes] = []
        self.statuses: list[int] = []
        self.complete = False
        self.left = asyncio.Event()
        self._takes = takes

    async def receive(self) -> dict[str, Any]:
        """Say when it leaves."""
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Take a message, or hang as a full socket does."""
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])
            return
        if self._takes is not None and len(self.bodies) >= self._takes:
            await asyncio.Event().wait()
        self.complete = not message["more_body"]
        if message["body"]:
            self.bodies.append(message["body"])


class Source:
    """Events, and whether their generator was closed."""

    def __init__(self, *steps: bytes | float | Exception) -> None:
        self._steps = steps
        self.closed = False

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield bytes, sleep for numbers, raise errors."""
        try:
            for step in self._steps:
                if isinstance(step, bytes):
                    yield step
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    raise step
        finally:
            self.closed = True


async def run(source: Source, client: Client, **times: float) -> None:
    """Serve the stream to the client."""
    times = {"ping_s": 5.0, "slow_client_s": 5.0} | times
    stream = EventStream(source.events(), **times)
    await stream({"type": "http"}, client.receive, client.send)


async def test_events_arrive_in_order_and_the_body_ends() -> None:
    source, client = Source(b"a", b"b", DONE), Client()

    await run(source, client)

    assert client.bodies == [b"a", b"b", DONE]
    assert client.statuses == [200]
    assert client.complete
    assert source.closed


async def test_silence_is_filled_with_comments() -> None:
    client = Client()

    await run(Source(0.25, b"a"), client, ping_s=0.1)

    assert client.bodies == [PING, PING, b"a"]


async def test_an_error_before_the_first_event_leaves_the_status_to_the_caller() -> None:
    source, client = Source(Overloaded("Full.")), Client()

    with pytest.raises(Overloaded):
        await run(source, client)

    assert client.statuses == []
    assert source.closed


async def test_an_error_amid_the_events_becomes_the_last_event() -> None:
    client = Client()

    await run(Source(b"a", WorkerLost("Gone.")), client)

    assert client.bodies[-1].startswith(b'data: {"error":{"message":"Gone."')
    assert client.complete


async def test_a_database_that_goes_away_amid_the_events_may_be_asked_again() -> None:
    client = Client()

    await run(Source(b"a", OperationalError("SELECT 1", {}, OSError("gone"))), client)

    assert b'"code":"server_overloaded"' in client.bodies[-1]
    assert b"SELECT" not in client.bodies[-1]
    assert client.complete


async def test_a_client_that_takes_no_byte_is_cut() -> None:
    source, client = Source(b"a", b"b", b"c"), Client(takes=1)

    async with asyncio.timeout(2):
        await run(source, client, slow_client_s=0.05)

    assert client.bodies == [b"a"]
    assert not client.complete
    assert source.closed


async def test_a_client_that_leaves_closes_the_source() -> None:
    source, client = Source(b"a", 60.0), Client()

    serving = asyncio.ensure_future(run(source, client))
    await asyncio.sleep(0.01)
    client.left.set()

    async with asyncio.timeout(2):
        await serving
    assert source.closed


async def test_a_shutdown_amid_the_events_is_said_before_the_end() -> None:
    source, client = Source(b"a", 60.0), Client()

    serving = asyncio.ensure_future(run(source, client))
    await asyncio.sleep(0.01)
    serving.cancel()

    with pytest.raises(asyncio.CancelledError):
        await serving
    assert b"shutting down" in client.bodies[-1]
    assert client.complete
    assert source.closed
