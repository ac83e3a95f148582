"""Random histories in which prompts are compressed: what holds without holds with."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings

from scheduler.domain.request import KvPolicyChoice, Sequence
from tests.unit.scheduler.policy.test_iteration_machine import BLOCK_SIZE, History

POLICY = KvPolicyChoice(type="half", options={})


@dataclass(frozen=True)
class HalfLayout:
    """Every head holds half of the prompt."""

    num_prompt_tokens: int

    @property
    def num_kept(self) -> int:
        return -(-self.num_prompt_tokens // 2)

    @property
    def num_dropped(self) -> int:
        return self.num_prompt_tokens - self.num_kept

    def blocks_for(self, num_tokens: int) -> int:
        return -(-(num_tokens - self.num_dropped) // BLOCK_SIZE)


class CompressedHistory(History):
    """The engine compresses a prompt after the step that has computed the last of it."""

    def _step(self, num_training_tokens: int) -> None:
        for lead in self.alive.values():
            for sequence in lead.group:
                sequence.request = sequence.request.model_copy(update={"kv_policy": POLICY})
        super()._step(num_training_tokens)
        for sequence in list(self.scheduler.running):
            self._compress(sequence)

    def _compress(self, sequence: Sequence) -> None:
        if sequence not in self.scheduler.running or sequence.layout is not None:
            return
        assert sequence.num_computed_tokens <= sequence.num_prompt_tokens
        if sequence.num_computed_tokens == sequence.num_prompt_tokens:
            num_free = self.scheduler.pool.num_free
            held = set(sequence.block_table)
            fresh = self.scheduler.lay_out(sequence, HalfLayout(sequence.num_prompt_tokens))
            assert fresh is not None
            assert set(fresh) == set(sequence.block_table)
            assert self.scheduler.pool.num_free == num_free + len(held) - len(fresh)


TestCompressedHistory = CompressedHistory.TestCase
TestCompressedHistory.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
