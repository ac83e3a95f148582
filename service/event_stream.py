"""Server-sent events that never end silently.

A stream ends with `[DONE]`, or with an error object, or because the client left. Errors before
the first event still become a proper HTTP status. While nothing happens, comment lines keep
proxies from closing the connection; a client that takes no byte for long is cut.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import structlog
from starlette.responses import Response

from scheduler.domain.errors import DomainError
from scheduler.store.database import DATABASE_AWAY
from service.encoding import to_json
from service.errors import describe, error_object, told

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

log = structlog.get_logger(__name__)

T = TypeVar("T")
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
CLIENT_CLOSED = 499  # nobody reads it; it keeps the access log truthful


class ClientLeft(Exception):
    """The client closed the connection before the answer was complete."""


def event(value: object) -> bytes:
    """One event line."""
    return b"data: " + to_json(value) + b"\n\n"


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(request: Request, answer: Awaitable[T]) -> T:
    """Await `answer`, but cancel it the moment the client leaves.

    Raises:
        ClientLeft: it left; `answer` has been cancelled and has cleaned up.
    """
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_until_disconnect(request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientLeft
        return work.result()
    finally:
        await _cancel(work, gone)


async def _cancel(*tasks: asyncio.Future[T] | asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """Sends what a generator of event bytes yields.

    Args:
        events: ready-made event bytes; closed (`aclose`) however the stream ends.
        ping_s: seconds of silence after which a comment line is sent.
        slow_client_s: seconds that a client may take no byte before it is cut.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], *, ping_s: float, slow_client_s: float
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"
        self._events = events
        self._ping_s = ping_s
        self._slow_client_s = slow_client_s
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the generator ends, fails, or the client leaves or stalls.

        Raises:
            DomainError, SQLAlchemyError: the generator failed before anything was sent.
        """
        del scope
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        except asyncio.CancelledError:
            if not pump.done() and self._started:
                await self._say_shutdown(pump, send)
            raise
        finally:
            await _cancel(pump, gone)
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        upcoming = asyncio.ensure_future(self._next())
        try:
            while True:
                done, _ = await asyncio.wait({upcoming}, timeout=self._ping_s)
                chunk = upcoming.result() if done else PING
                if chunk is None:
                    break
                await self._write(send, chunk)
                if done:
                    upcoming = asyncio.ensure_future(self._next())
        except (DomainError, *DATABASE_AWAY) as error:
            if not self._started:
                raise
            log.warning("stream_failed", error=type(error).__name__)
            await self._write(send, event(describe(told(error))))
        except TimeoutError:
            log.warning("slow_client_cut", limit_s=self._slow_client_s)
            return
        finally:
            await _cancel(upcoming)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> bytes | None:
        return await anext(self._events, None)

    async def _write(self, send: Send, chunk: bytes) -> None:
        async with asyncio.timeout(self._slow_client_s):
            if not self._started:
                self._started = True
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _say_shutdown(self, pump: asyncio.Future[None], send: Send) -> None:
        await _cancel(pump)
        text = "The gateway is shutting down; send the request again."
        last = event(error_object(503, text, code="server_overloaded"))
        await send({"type": "http.response.body", "body": last, "more_body": False})
