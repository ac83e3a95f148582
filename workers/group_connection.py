"""The pipe to the agent, as every rank of a group sees it: the leader holds it, all hear it."""

from __future__ import annotations

from scheduler.domain.message_codec import decode, encode
from scheduler.domain.messages import TO_ENGINE, FromEngine, ToEngine
from workers.connection import Connection
from workers.group import Group


class GroupConnection:
    """The leader's orders on every rank; only the leader's reports leave.

    Args:
        connection: the leader's end of the pipe; None on the others.
        group: whom to tell.
    """

    def __init__(self, connection: Connection | None, group: Group) -> None:
        self._connection = connection
        self._group = group

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """See Connection."""
        orders = [] if self._connection is None else self._connection.poll(timeout_s)
        told = self._group.tell([encode(order).hex() for order in orders])
        return [decode(TO_ENGINE, bytes.fromhex(body)) for body in told]

    def send(self, message: FromEngine) -> None:
        """See Connection."""
        if self._connection is not None:
            self._connection.send(message)
