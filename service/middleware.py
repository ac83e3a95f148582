"""The outermost ring of the app: headers of every answer, body limit, the last resort.

One plain ASGI class, because Starlette's BaseHTTPMiddleware would put a queue between every
token and the socket and hide the client's disconnect from the route.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders

from service.errors import error_object, plain_response
from service.event_stream import event

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger(__name__)

_UPLOADS = re.compile(r"/v1/files|/v1/adapters(/[^/]+/versions)?")
_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
LINGER_BYTES, LINGER_S = 2**20, 2.0  # of a refused body that is read all the same
FORM_SLACK_BYTES = 64 * 1024  # boundaries and small fields around an uploaded file


def _request_id(headers: Headers) -> str:
    """The client's own id when it is printable and short, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _CLIENT_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


class Boundary:
    """Wraps every HTTP exchange of the app.

    Args:
        app: the application inside.
        max_body_bytes: largest body of any route but the uploads.
        max_file_bytes: largest uploaded file.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_file_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_file_bytes = max_file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange; whatever escapes the app becomes a 500 that leaks nothing."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = _Exchange(_request_id(headers), receive, send, self._limit(scope))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=exchange.request_id)
        scope.setdefault("state", {}).update(
            request_id=exchange.request_id, answer_headers=exchange.answer_headers
        )
        try:
            if exchange.announces_too_much(headers):
                await exchange.linger()
                refusal = plain_response(413, exchange.too_large, {"connection": "close"})
                await refusal(scope, receive, exchange.send)
            else:
                await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("request_crashed", path=scope["path"])
            await self._answer_crash(exchange, scope, receive)

    async def _answer_crash(self, exchange: _Exchange, scope: Scope, receive: Receive) -> None:
        sorry = f"The server failed; its log holds request {exchange.request_id}."
        if not exchange.started:
            await plain_response(500, sorry)(scope, receive, exchange.send)
            return
        last = event(error_object(500, sorry, code="internal")) if exchange.is_stream else b""
        await exchange.send({"type": "http.response.body", "body": last, "more_body": False})

    def _limit(self, scope: Scope) -> int:
        if scope["method"] == "POST" and _UPLOADS.fullmatch(scope["path"]):
            return self.max_file_bytes + FORM_SLACK_BYTES
        return self.max_body_bytes


class _Exchange:
    """One request on its way in and its answer on its way out.

    Attributes:
        answer_headers: what the app adds to whatever the answer will be, an error or a stream too.
    """

    def __init__(self, request_id: str, receive: Receive, send: Send, max_bytes: int) -> None:
        self.request_id = request_id
        self.answer_headers: dict[str, str] = {}
        self.started = False
        self.is_stream = False
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._start_s = time.perf_counter()

    @property
    def too_large(self) -> str:
        """The sentence of a 413."""
        return f"The body is over the limit of {self._max_bytes} bytes; send less."

    def announces_too_much(self, headers: Headers) -> bool:
        """Whether Content-Length already says that the body is over the limit."""
        announced = headers.get("content-length", "")
        return announced.isdecimal() and int(announced) > self._max_bytes

    async def receive(self) -> Message:
        """Pass the body on, counting; a body without a length is cut the moment it is over.

        Raises:
            HTTPException: 413.
        """
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_bytes:
            await self.linger()
            raise HTTPException(413, self.too_large, {"connection": "close"})
        return message

    async def linger(self) -> None:
        """Discard what the client is still sending, within bounds.

        A connection closed on a sender is reset, and the reset overtakes the answer.
        """
        left_bytes = LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while left_bytes > 0:
                    message = await self._receive()
                    left_bytes -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    async def send(self, message: Message) -> None:
        """Pass the answer on, with the two headers that every answer carries and those added."""
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers["x-request-id"] = self.request_id
            self.is_stream = headers.get("content-type", "").startswith("text/event-stream")
            elapsed_ms = (time.perf_counter() - self._start_s) * 1000
            headers["openai-processing-ms"] = str(int(elapsed_ms))
            headers.update(self.answer_headers)
        await self._send(message)
