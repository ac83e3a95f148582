"""The unfinished requests of one gateway, each with the answers that its reader waits for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.answers import Answers
    from service.live_request import LiveRequest


class LiveRequests:
    """Requests from the moment they are sent until their reader or their worker is through."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[LiveRequest, Answers]] = {}

    def add(self, live: LiveRequest, answers: Answers) -> None:
        """Take one up."""
        self._live[live.id] = (live, answers)

    def drop(self, live: LiveRequest) -> bool:
        """Forget one; whether it was still there."""
        return self._live.pop(live.id, None) is not None

    def get(self, request_id: str) -> tuple[LiveRequest, Answers] | None:
        """A request with its answers; None once it is over."""
        return self._live.get(request_id)

    def pairs(self) -> list[tuple[LiveRequest, Answers]]:
        """All of them; the list stays as it is while requests come and go."""
        return list(self._live.values())

    def at(self, inbox: str) -> list[tuple[LiveRequest, Answers]]:
        """Those that one worker answers."""
        return [pair for pair in self._live.values() if pair[0].inbox == inbox]

    def num_by_inbox(self) -> Counter[str]:
        """How many each worker answers."""
        return Counter(live.inbox for live in self._requests())

    def num_answering(self, adapter_id: str) -> int:
        """How many an adapter answers, alone or with others."""
        return sum(
            any(adapter.adapter_id == adapter_id for adapter in live.body.adapters)
            for live in self._requests()
        )

    def num_sequences(self, tenant_id: str) -> int:
        """A tenant's sequences; a mixture counts once for each of its models."""
        mine = (live.body for live in self._requests() if live.body.tenant_id == tenant_id)
        return sum(body.num_sequences for body in mine)

    def num_waiting(self, inbox: str | None = None) -> int:
        """How many have had no token yet, at one worker or at all."""
        return sum(
            live.first_token_s is None and inbox in (None, live.inbox) for live in self._requests()
        )

    def _requests(self) -> Iterator[LiveRequest]:
        return (live for live, _ in self._live.values())
