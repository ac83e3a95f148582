"""Places requests on workers by what the roster and this gateway's own memory say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.policy.placement import Candidate, choose
from scheduler.policy.prefix_chain import chain_root
from scheduler.policy.sent_prefixes import SentPrefixes, chunk_keys
from service.worker_roster import load_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from scheduler.domain.messages import WorkerInfo
    from scheduler.domain.request import RequestBody
    from service.worker_roster import WorkerRoster


class RequestPlacer:
    """Adapter affinity, then prefixes, within a bound on imbalance.

    Args:
        roster: the live workers.
    """

    def __init__(self, roster: WorkerRoster) -> None:
        self._roster = roster
        self._sent = SentPrefixes()

    def place(
        self, body: RequestBody, num_live: Mapping[str, int], avoid: Collection[str] = ()
    ) -> WorkerInfo:
        """The worker for a request, which is counted as sent there.

        Args:
            body: the request.
            num_live: this gateway's own unfinished requests per inbox.
            avoid: inboxes not to use.

        Raises:
            Overloaded: no live worker holds its base model.
        """
        workers = {one.worker_id: one for one in self._roster.able(body.base_model, avoid)}
        weights = "+".join(sorted(adapter.digest for adapter in body.adapters)) or None
        root = chain_root(body.tenant_id, body.cache_salt, body.base_model, weights)
        keys = chunk_keys(root, body.prompt_token_ids)
        candidates = [
            Candidate(
                worker_id=worker.worker_id,
                load=load_of(worker, num_live),
                num_matched=self._sent.num_matched(worker.inbox, keys),
            )
            for worker in workers.values()
        ]
        chosen = workers[choose(candidates, weights).worker_id]
        self._sent.add(chosen.inbox, keys)
        return chosen

    def forget(self, inbox: str) -> None:
        """A worker is lost; its next boot begins with an empty cache."""
        self._sent.forget(inbox)
