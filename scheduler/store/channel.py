"""The channel between gateways and workers: ordered, bounded streams and a worker registry.

Nothing here is the record of anything: a channel that lost its memory costs a stall or a retried
request, never a job.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from scheduler.domain.errors import Overloaded
from scheduler.domain.messages import WorkerInfo

if TYPE_CHECKING:
    from collections.abc import Mapping


START = "0"  # `last_id` of a reader that has read nothing yet
DEFAULT_MAXLEN = 20_000
PATIENCE_S = 10.0  # how long a call waits for a connection before it gives up
WORKER_INFO: TypeAdapter[WorkerInfo] = TypeAdapter(WorkerInfo)


class ChannelDown(Overloaded):
    """The channel did not answer within its patience (`PATIENCE_S`)."""


class Channel(ABC):
    """Ordered streams of bytes by name, and announcements with a time to live.

    Delivery is at least once while an entry is retained: a reconnect may repeat an append, so
    readers tell duplicates by the messages' own ids and sequence numbers.
    """

    @abstractmethod
    async def append(self, stream: str, data: bytes, maxlen: int = DEFAULT_MAXLEN) -> str:
        """Add an entry and return its id; ids of a stream grow, also over restarts.

        The oldest entries fall away beyond `maxlen` (Redis may keep a few more).

        Raises:
            ChannelDown: no connection.
        """

    @abstractmethod
    async def read(
        self, streams: Mapping[str, str], block_ms: int = 0, count: int = 100
    ) -> list[tuple[str, str, bytes]]:
        """Entries (stream, id, data) after each stream's last read id, in order per stream.

        Args:
            streams: name -> id of the last entry read, `START` for none.
            block_ms: how long to wait when there is nothing; 0 returns at once.
            count: most entries per stream.

        Raises:
            ChannelDown: no connection.
        """

    @abstractmethod
    async def announce(self, info: WorkerInfo, ttl_s: float = 6.0) -> None:
        """Enter or refresh a worker in the registry."""

    @abstractmethod
    async def workers(self) -> list[WorkerInfo]:
        """The workers whose announcement has not run out, by id."""

    @abstractmethod
    async def withdraw(self, worker_id: str) -> None:
        """Take a worker out of the registry; an unknown one is fine."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connection; running calls end with ChannelDown."""
