"""Sequences of the model runner, without an engine: prompts, and contexts that decode."""

from __future__ import annotations

from collections.abc import Sequence as Many

from scheduler.domain.plan import Span
from scheduler.domain.request import RequestBody, SamplingParams, Sequence, unread_token
from workers.adapter_arena import AdapterColumns
from workers.batch_builder import InferenceRow
from workers.drawn_tokens import DrawnTokens
from workers.model_runner import ModelRunner

PAGE = 32


def sequence_of(place: int, tokens: int, blocks: list[int], num_computed: int = 0) -> Sequence:
    """The place-th of a batch: greedy, and no token ends it."""
    body = RequestBody(
        request_id=f"r{place}",
        tenant_id="t",
        base_model="m",
        prompt_token_ids=tuple([2] * tokens),
        sampling=SamplingParams(temperature=0, ignore_eos=True),
    )
    sequence = Sequence(body, 0, list(body.prompt_token_ids), 0.0)
    sequence.num_computed_tokens = num_computed
    sequence.block_table = blocks
    return sequence


class DecodeSteps:
    """The last token of every sequence, again and again: what is drawn takes its place.

    As in the engine, a step is issued before the tokens of the one before are read.
    """

    def __init__(
        self,
        runner: ModelRunner,
        sequences: list[Sequence],
        columns: Many[AdapterColumns | None],
    ) -> None:
        self.runner = runner
        self.sequences = sequences
        self.columns = columns
        self._unread: DrawnTokens | None = None

    def run(self) -> None:
        """One step."""
        rows = [
            InferenceRow(Span(sequence.id, sequence.num_computed_tokens, 1), sequence, adapter)
            for sequence, adapter in zip(self.sequences, self.columns, strict=True)
        ]
        before, self._unread = self._unread, self.runner.run(rows, []).drawn
        assert self._unread is not None
        for row, sequence in enumerate(self._unread.leads):
            sequence.token_ids[-1] = unread_token(row)
        if before is not None:
            before.read()
