"""The engine's end of the pipe to its agent, as the engine sees it."""

from __future__ import annotations

from typing import Protocol

from scheduler.domain.messages import FromEngine, ToEngine


class Connection(Protocol):
    """The engine's end of the pipe to its agent."""

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """Everything that has arrived; waits up to `timeout_s` for the first."""

    def send(self, message: FromEngine) -> None:
        """Report; never waits."""
