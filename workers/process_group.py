"""A group of several processes, on one machine or on many, over torch.distributed.

A rank that dies breaks the connections of the others at once, one that hangs runs into the time
limit; either way a call here ends in GroupLost, and the engine with it. Nothing here asks who
calls: a network between machines must let only the ranks of the group in.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from workers.group import Group, ValueT
from workers.shard import Shard

TIMEOUT_S = 60.0  # loading a base model must not differ by more between two ranks
SAID_CHARS = 1000  # of what the ranks differ in
_SMALL_BYTES = 1024
_LENGTH_BYTES = 4


class GroupLost(BaseException):
    """The ranks no longer work together.

    No Exception: a job's boundary must not take it for the job's failure.
    """


class ProcessGroup(Group):
    """This process's place among `size` of them.

    Args:
        rank: 0 is the leader.
        size: number of ranks.
        meeting: where they find each other: `file:///PATH` of a file that does not exist yet, or
            `tcp://HOST:PORT` of the leader, which listens there.
    """

    def __init__(self, rank: int, size: int, meeting: str) -> None:
        self.shard = Shard(rank, size)
        limit = timedelta(seconds=TIMEOUT_S)
        with _lost_if_broken():
            dist.init_process_group(
                "gloo",
                init_method=meeting,
                rank=rank,
                world_size=size,
                timeout=limit,
            )

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()

    def share(self, x: Tensor) -> Tensor:
        """See Group: the leader brings it."""
        return x if self.is_leader else x.zero_()

    def sum(self, x: Tensor) -> Tensor:
        """See Group."""
        with _lost_if_broken():
            dist.all_reduce(x)
        return x

    def gather(self, part: Tensor, dim: int) -> Tensor:
        """See Group."""
        parts = [part.new_empty(part.shape) for _ in range(self.shard.size)]
        with _lost_if_broken():
            dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, dim)

    def all(self, fact: bool) -> bool:
        """See Group."""
        return int(self.sum(torch.tensor(int(fact)))) == self.shard.size

    def tell(self, value: ValueT) -> ValueT:
        """See Group."""
        body = json.dumps(value).encode() if self.is_leader else b""
        told: ValueT = json.loads(self._broadcast(body))
        return told

    def check_same(self, fact: object) -> None:
        """See Group."""
        own = zlib.crc32(repr(fact).encode())
        if not self.all(own == self.tell(own)):
            raise GroupLost(f"The ranks differ; here it is {repr(fact)[:SAID_CHARS]}.")

    def _broadcast(self, body: bytes) -> bytes:
        """The leader's bytes; a short message takes one round, a longer one two."""
        head = torch.zeros(_LENGTH_BYTES + _SMALL_BYTES, dtype=torch.uint8)
        start = len(body).to_bytes(_LENGTH_BYTES, "big") + body[:_SMALL_BYTES]
        head[: len(start)] = torch.frombuffer(bytearray(start), dtype=torch.uint8)
        self._from_leader(head)
        length = int.from_bytes(bytes(head[:_LENGTH_BYTES].tolist()), "big")
        first = bytes(head[_LENGTH_BYTES : _LENGTH_BYTES + length].tolist())
        if length <= _SMALL_BYTES:
            return first
        rest = torch.empty(length - _SMALL_BYTES, dtype=torch.uint8)
        if self.is_leader:
            rest.copy_(torch.frombuffer(bytearray(body[_SMALL_BYTES:]), dtype=torch.uint8))
        self._from_leader(rest)
        return first + rest.numpy().tobytes()

    def _from_leader(self, x: Tensor) -> None:
        with _lost_if_broken():
            dist.broadcast(x, 0)


@contextmanager
def _lost_if_broken() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed's own errors are all of this type
        raise GroupLost(str(error)) from error
