"""Random histories in which sequences are compressed: what holds without holds with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import settings

from scheduler.domain.kv_cadence import KvCadence
from tests.unit.scheduler.policy.test_iteration_machine import BLOCK_SIZE, History, Memory

if TYPE_CHECKING:
    from scheduler.domain.plan import Span
    from scheduler.domain.request import Sequence

NUM_WATCHED = 3
INTERVAL = 5


@dataclass(frozen=True)
class KeptLayout:
    """Every head holds so many slots in place of the first tokens."""

    num_tokens: int
    num_kept: int

    @property
    def num_dropped(self) -> int:
        return self.num_tokens - self.num_kept

    def blocks_for(self, num_tokens: int) -> int:
        return -(-(num_tokens - self.num_dropped) // BLOCK_SIZE)


class CompressedMemory(Memory):
    """Slots of compressed sequences are their own; nobody else writes to them or reads them."""

    def compress(self, sequence: Sequence, fresh: tuple[int, ...]) -> None:
        """Copy what is kept into blocks that a former owner left something in."""
        assert set(fresh) == set(sequence.block_table)
        self.lose(fresh)
        for slot in range(sequence.num_computed_tokens - sequence.num_dropped_tokens):
            self.slots[self._place(sequence, slot)] = sequence.id

    def run(self, sequence: Sequence, span: Span) -> None:
        """Write a span's tokens behind what is kept; all of it must be there."""
        if sequence.layout is None:
            super().run(sequence, span)
            return
        start = span.start - sequence.num_dropped_tokens
        for slot in range(start, start + span.count):
            assert self._place(sequence, slot) not in self.slots
            self.slots[self._place(sequence, slot)] = sequence.id
        for slot in range(start + span.count):
            assert self.slots[self._place(sequence, slot)] == sequence.id

    def _place(self, sequence: Sequence, slot: int) -> tuple[int, int]:
        return sequence.block_table[slot // BLOCK_SIZE], slot % BLOCK_SIZE


class CompressedHistory(History):
    """The engine compresses after the step that has computed the last token before."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: CompressedMemory = CompressedMemory()

    def _step(self, num_training_tokens: int) -> None:
        for sequence in self._sequences():
            number = int(sequence.request.request_id[1:])
            sequence.cadence = cadence(sequence.num_prompt_tokens, number)
        super()._step(num_training_tokens)
        for sequence in list(self.scheduler.running):
            self._compress(sequence)

    def _compress(self, sequence: Sequence) -> None:
        if sequence not in self.scheduler.running:
            return
        assert sequence.cadence is not None
        end = sequence.cadence.next_after(sequence.num_compressed_tokens)
        assert end is None or sequence.num_computed_tokens <= end
        assert sequence.is_due == (sequence.num_computed_tokens == end)
        if sequence.is_due:
            num_held = sequence.num_computed_tokens - sequence.num_dropped_tokens
            layout = KeptLayout(sequence.num_computed_tokens, -(-num_held // 2))
            fresh = self.scheduler.lay_out(sequence, layout)
            if fresh is None:
                assert sequence not in self.scheduler.running
            else:
                self.memory.compress(sequence, fresh)


def cadence(num_prompt_tokens: int, kind: int) -> KvCadence:
    """With the prompt only; again and again after it; or for the first time in the answer."""
    watched = min(NUM_WATCHED, num_prompt_tokens)
    match kind % 3:
        case 0:
            return KvCadence(num_prompt_tokens, watched)
        case 1:
            return KvCadence(num_prompt_tokens, watched, INTERVAL, NUM_WATCHED)
        case _:
            return KvCadence(num_prompt_tokens + INTERVAL, NUM_WATCHED, INTERVAL, INTERVAL)


TestCompressedHistory = CompressedHistory.TestCase
TestCompressedHistory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
