"""Many streamed answers at once, and what each of their callers received."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import httpx

from tests.e2e.service import BASE_MODEL, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_TOKENS = 384  # so many that no stream has ended when the last one has begun
WARM_TOKENS = 4  # every stream has these before what is to happen midway
EXACT = {"dtype": "float32", "num_threads": "1"}  # the promise of equal tokens is for float32


@dataclass
class Stream:
    """What one caller received.

    Attributes:
        pieces: texts with their times.
        error: what ended it, if not its end.
        ended_s: when it was over.
    """

    pieces: list[tuple[float, str]] = field(default_factory=list)
    error: str | None = None
    is_done: bool = False
    ended_s: float = 0.0

    @property
    def text(self) -> str:
        return "".join(piece for _, piece in self.pieces)

    @property
    def longest_pause_s(self) -> float:
        return max((after - before for (before, _), (after, _) in pairwise(self.pieces)), default=0)

    def take(self, line: str) -> None:
        """Take in one event."""
        if line == "data: [DONE]":
            self.is_done = True
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                self.error = event["error"]["code"]
            elif event["choices"]:
                self.pieces.append((time.monotonic(), event["choices"][0]["text"]))


async def ask(client: httpx.AsyncClient, number: int, stream: Stream, num_tokens: int) -> None:
    """Stream one answer; every second one is greedy, the others are drawn with a seed."""
    body = {
        "model": BASE_MODEL,
        "prompt": f"Question {number}: what comes next?",
        "max_tokens": num_tokens,
        "temperature": number % 2,
        "frequency_penalty": 0.5,
        "seed": number,
        "stream": True,
        "ignore_eos": True,
    }
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                stream.take(line)
    except httpx.TransportError:
        stream.error = "connection broken"
    stream.ended_s = time.monotonic()


async def ask_all(
    url: str,
    key: str,
    num_streams: int,
    midway: Callable[[], None] | None = None,
    num_tokens: int = NUM_TOKENS,
) -> list[Stream]:
    """Stream many answers at once; `midway` is called when each of them has begun."""
    streams = [Stream() for _ in range(num_streams)]
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=num_streams)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=PATIENCE_S, limits=limits
    ) as client:
        asked = [
            asyncio.ensure_future(ask(client, number, stream, num_tokens))
            for number, stream in enumerate(streams)
        ]
        while midway is not None:
            await asyncio.sleep(0.01)
            if all(len(stream.pieces) >= WARM_TOKENS for stream in streams):
                midway()
                break
        await asyncio.gather(*asked)
    return streams
