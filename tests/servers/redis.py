"""A Redis of the tests' own, which can be emptied, filled up and killed; it comes back empty."""

from __future__ import annotations

import subprocess
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import redis

from tests.servers.ports import free_port, until_it_listens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEAST_BYTES = 1  # as a limit of memory: nothing more can be written


class RedisServer:
    """A server on a port of its own, which keeps nothing on disk.

    Args:
        folder: where it runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its URL, without a database."""
        return f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = ("redis-server", "--port", str(self._port), "--bind", "127.0.0.1")
        self._process = subprocess.Popen(
            [*command, "--dir", str(self._folder), "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
        )
        until_it_listens(self._port)

    def kill(self) -> None:
        """Kill it; everything that it held is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def flush(self) -> None:
        """Empty all of its databases while all stay connected."""
        with closing(redis.Redis.from_url(self.url)) as client:
            client.flushall()

    def limit(self, memory_bytes: int) -> None:
        """Let it refuse writes beyond so much memory; 0 lifts the limit."""
        with closing(redis.Redis.from_url(self.url)) as client:
            client.config_set("maxmemory", memory_bytes)


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A server that runs for as long as the block lasts."""
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
