"""What beginnings of prompts each worker has seen lately, as a gateway remembers it.

A guess: the worker may have dropped the blocks, and knows of prompts that other gateways sent. A
wrong guess costs what no guess would have cost.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from itertools import takewhile
from typing import TYPE_CHECKING

from scheduler.policy.prefix_chain import block_key

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

CHUNK_TOKENS = 64  # what is shorter is computed sooner than it is looked for
MAX_CHUNKS = 64  # of one prompt: bounds the hashing for a long one
MAX_KEYS = 32_768  # of one worker: two million tokens


def chunk_keys(root: bytes, token_ids: Sequence[int]) -> list[bytes]:
    """Keys of the first full chunks of a prompt, chained from `root`."""
    keys: list[bytes] = []
    parent = root
    for place in range(min(len(token_ids) // CHUNK_TOKENS, MAX_CHUNKS)):
        start = place * CHUNK_TOKENS
        parent = block_key(parent, token_ids[start : start + CHUNK_TOKENS])
        keys.append(parent)
    return keys


class SentPrefixes:
    """Keys of chunks by worker; the least recently sent fall away.

    Args:
        max_keys: most keys of one worker.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._sent: defaultdict[str, OrderedDict[bytes, None]] = defaultdict(OrderedDict)

    def num_matched(self, worker: str, keys: Sequence[bytes]) -> int:
        """How many chunks at the prompt's beginning the worker has seen; 0 for less than half.

        A short common beginning saves less than an uneven load costs.
        """
        seen: Collection[bytes] = self._sent.get(worker, ())
        count = sum(1 for _ in takewhile(seen.__contains__, keys))
        return count if 2 * count >= len(keys) else 0

    def add(self, worker: str, keys: Sequence[bytes]) -> None:
        """A prompt of these chunks is sent to a worker."""
        seen = self._sent[worker]
        for key in reversed(keys):  # so that a beginning outlives what follows it
            seen[key] = None
            seen.move_to_end(key)
        while len(seen) > self._max_keys:
            seen.popitem(last=False)

    def forget(self, worker: str) -> None:
        """The worker has gone."""
        self._sent.pop(worker, None)
