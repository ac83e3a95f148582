"""The ranks that run one base model together, as each of them sees the others.

Every rank runs the same engine over the same orders in the same order; what one machine cannot
know of another (orders, the time, measurements, drawn tokens) the leader tells. This is the group
of one, to which nobody has to be told anything; `process_group` has the group of many.
"""

from __future__ import annotations

import time
from typing import TypeVar

from torch import Tensor

from workers.shard import WHOLE, Shard

ValueT = TypeVar("ValueT")


class Group:
    """A group of one rank."""

    shard: Shard = WHOLE

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody else."""
        return self.shard.size == 1

    @property
    def is_leader(self) -> bool:
        """Whether this rank has the agent's ear."""
        return self.shard.rank == 0

    def share(self, x: Tensor) -> Tensor:
        """What this rank brings to a sum that is to hold `x` once; may overwrite `x`."""
        return x

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place; the same bits on each."""
        return x

    def gather(self, part: Tensor, dim: int) -> Tensor:
        """The parts of all ranks, side by side in `dim`."""
        del dim
        return part

    def all(self, fact: bool) -> bool:
        """Whether a fact holds on every rank."""
        return fact

    def tell(self, value: ValueT) -> ValueT:
        """The leader's value, which JSON can hold, on every rank."""
        return value

    def now_s(self) -> float:
        """The leader's monotonic clock."""
        return self.tell(time.monotonic())

    def check_same(self, fact: object) -> None:
        """End this process if the ranks decide differently, or are not set up alike."""


ALONE = Group()
