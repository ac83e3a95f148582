"""K/V that one sequence has computed and another one need not compute again.

A block is published under its key (see `prefix_chain`) when the step that filled it is through, be
it of prompt or of output: a second turn finds the first one's answer. A sequence that is about to
run takes over the longest run of published blocks that its tokens begin with, and computes the
rest, at least one token, from which the next one is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from scheduler.domain.request import Sequence
from scheduler.policy.blocks import BlockPool
from scheduler.policy.prefix_chain import block_key, chain_root


class PrefixCache:
    """The published blocks of one base model, as sequences see them.

    Attributes:
        is_on: whether anything is found and published.
        num_queries: tokens of sequences that began.
        num_hits: those of them whose K/V were there.
    """

    def __init__(self, pool: BlockPool, base_digest: str, *, is_on: bool = True) -> None:
        self.pool = pool
        self.base_digest = base_digest
        self.is_on = is_on
        self.num_queries = 0
        self.num_hits = 0

    def pin(self, lead: Sequence) -> None:
        """Let a waiting group hold the blocks that its tokens begin with, as many for each member.

        Whoever wants scores of its prompt has to compute all of it.
        """
        if not self._may_find(lead):
            return
        most = self._most(lead)
        found = [self.pool.find(self._keys(member, most)) for member in lead.group]
        count = min(map(len, found))
        for member, blocks in zip(lead.group, found, strict=True):
            member.block_table = blocks[:count]
            self.pool.share(member.id, member.block_table)

    def is_coming(self, lead: Sequence, running: Iterable[Sequence]) -> bool:
        """Whether half of what a pinned group lacks, or more, is what others are about to publish.

        It then does better to wait: answers to one prompt compute it once.
        """
        if not self._may_find(lead):
            return False
        size, held = self.pool.block_size, len(lead.block_table)
        coming = {key for other in running for key in self._unpublished(other)}
        most = self._most(lead)
        lacking = [self._keys(member, most)[held:] for member in lead.group]
        count = min(sum(1 for _ in takewhile(coming.__contains__, keys)) for keys in lacking)
        return 2 * count * size >= len(lead.token_ids) - held * size

    def begin(self, sequence: Sequence) -> None:
        """Count what a sequence was pinned as computed, now that it runs."""
        num_tokens = len(sequence.block_table) * self.pool.block_size
        sequence.num_computed_tokens = num_tokens
        if self._may_find(sequence) and _runs_first(sequence):
            sequence.num_cached_tokens = num_tokens
            self.num_queries += len(sequence.token_ids)
            self.num_hits += num_tokens

    def publish(self, sequence: Sequence, start: int) -> None:
        """Publish the blocks that the computed tokens from `start` on have filled.

        What a compressed sequence holds depends on more than its tokens: nobody finds it.
        """
        if not self.is_on or sequence.layout is not None:
            return
        size, table = self.pool.block_size, sequence.block_table
        num_full = sequence.num_computed_tokens // size
        keys = self._keys(sequence, num_full)
        for place in range(start // size, num_full):
            table[place] = self.pool.publish(sequence.id, table[place], keys[place])

    def _may_find(self, sequence: Sequence) -> bool:
        return self.is_on and not sequence.request.sampling.prompt_logprobs

    def _most(self, sequence: Sequence) -> int:
        """Blocks that a sequence may find: some token is computed, and what is to be watched."""
        last = len(sequence.token_ids) - 1
        if sequence.cadence is not None:
            last = min(last, sequence.cadence.first - sequence.cadence.first_watched)
        return last // self.pool.block_size

    def _unpublished(self, sequence: Sequence) -> list[bytes]:
        """Keys of the blocks that the tokens of a running sequence are still to fill."""
        if sequence.num_uncomputed_tokens == 1 or sequence.layout is not None:
            return []
        size = self.pool.block_size
        keys = self._keys(sequence, len(sequence.token_ids) // size)
        return keys[sequence.num_computed_tokens // size :]

    def _keys(self, sequence: Sequence, count: int) -> list[bytes]:
        """Keys of the first `count` blocks."""
        keys, size = sequence.block_keys, self.pool.block_size
        for place in range(len(keys), count):
            parent = keys[-1] if keys else self._root(sequence)
            keys.append(block_key(parent, sequence.token_ids[place * size : (place + 1) * size]))
        return keys[:count]

    def _root(self, sequence: Sequence) -> bytes:
        request = sequence.request
        digest = None if sequence.adapter is None else sequence.adapter.digest
        return chain_root(request.tenant_id, request.cache_salt, self.base_digest, digest)


def _runs_first(sequence: Sequence) -> bool:
    """Whether it ran nowhere before: preempted here, or begun at a worker that died."""
    return not sequence.num_preemptions and not sequence.num_output_tokens
