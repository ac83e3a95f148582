"""Random histories in which prompts are compressed: what holds without holds with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import settings

from tests.unit.scheduler.policy.test_iteration_machine import BLOCK_SIZE, History, Memory

if TYPE_CHECKING:
    from scheduler.domain.plan import Span
    from scheduler.domain.request import Sequence

NUM_WATCHED = 3


@dataclass(frozen=True)
class HalfLayout:
    """Every head holds half of the prompt."""

    num_prompt_tokens: int

    @property
    def num_dropped(self) -> int:
        return self.num_prompt_tokens // 2

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
    """The engine compresses a prompt after the step that has computed the last of it."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: CompressedMemory = CompressedMemory()

    def _step(self, num_training_tokens: int) -> None:
        for sequence in self._sequences():
            sequence.num_watched_tokens = min(NUM_WATCHED, sequence.num_prompt_tokens)
        super()._step(num_training_tokens)
        for sequence in list(self.scheduler.running):
            self._compress(sequence)

    def _compress(self, sequence: Sequence) -> None:
        if sequence not in self.scheduler.running or sequence.layout is not None:
            return
        assert sequence.num_computed_tokens <= sequence.num_prompt_tokens
        if sequence.num_computed_tokens == sequence.num_prompt_tokens:
            fresh = self.scheduler.lay_out(sequence, HalfLayout(sequence.num_prompt_tokens))
            if fresh is None:
                assert sequence not in self.scheduler.running
            else:
                self.memory.compress(sequence, fresh)


TestCompressedHistory = CompressedHistory.TestCase
TestCompressedHistory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
