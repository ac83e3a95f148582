"""Which worker takes the next request.

Each adapter has a few homes: the workers that rank first for it by rendezvous hashing. They depend
on names only, so all gateways agree without a word, and a worker that joins or leaves moves no
adapter but its own. Among the homes, the one that has seen most of the prompt is preferred, then
the first. A home that is far busier than the least busy worker is passed over, so affinity bends
load by no more than the guard. The bare base is at home everywhere.

Source: Thaler and Ravishankar 1998 (highest random weight); AIBrix's router (a guard of 8).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

NUM_HOMES = 2  # of an adapter: each one costs a slot, and the second keeps a busy first one company
LOAD_GUARD = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that could take the request.

    Attributes:
        worker_id: its name, the same after a restart.
        load: sequences that it has under way.
        num_matched: chunks of the prompt that it should have in its prefix cache.
    """

    worker_id: str
    load: float
    num_matched: int = 0


def choose(
    candidates: Collection[Candidate], adapter_digest: str | None, guard: float = LOAD_GUARD
) -> Candidate:
    """The worker for a request.

    Args:
        candidates: at least one; their order does not matter.
        adapter_digest: what the request's weights are, beside the base; None: the bare base.
        guard: how much busier than the least busy worker the chosen one may be.
    """
    if adapter_digest is None:
        homes = ranked = sorted(candidates, key=lambda one: (one.load, one.worker_id))
    else:
        ranked = rendezvous(candidates, adapter_digest)
        homes = ranked[:NUM_HOMES]
    lightest = min(ranked, key=lambda one: one.load)
    free = [home for home in homes if home.load <= lightest.load + guard]
    return max(free, key=lambda one: one.num_matched, default=lightest)


def rendezvous(candidates: Collection[Candidate], key: str) -> list[Candidate]:
    """Candidates by their weight for `key`, the heaviest first."""
    return sorted(candidates, key=lambda one: _weight(one.worker_id, key), reverse=True)


def _weight(worker_id: str, key: str) -> bytes:
    return hashlib.blake2b(f"{worker_id}\0{key}".encode(), digest_size=16).digest()
