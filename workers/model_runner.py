"""Turns a step's plan into tensors, runs the packed forward, and draws the next tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scheduler.domain.messages import TokenLogprobs
from workers.batch_builder import BatchBuilder, InferenceRow, PackWindow, placement
from workers.decoder import Decoder
from workers.device_copy import upload
from workers.kv_cache import KVCache
from workers.sampler import SampledToken, Sampler, score
from workers.step_graphs import StepGraphs


@dataclass(slots=True)
class ForwardResult:
    """What a packed forward gave.

    Attributes:
        sampled: next token by sequence id, for spans that complete.
        prompt_logprobs: scores of prompt tokens start + 1 .. by sequence id, where asked for.
        hidden: rows after the last layer; training windows come first, in order.
    """

    sampled: dict[str, SampledToken]
    prompt_logprobs: dict[str, list[TokenLogprobs]]
    hidden: Tensor


class ModelRunner:
    """Runs one base model."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self.decoder = decoder
        self.cache = cache
        self.sampler = Sampler()
        self.device = decoder.weights.device
        self.graphs = StepGraphs.try_of(decoder, cache)

    @torch.inference_mode()
    def run(self, rows: list[InferenceRow], windows: list[PackWindow]) -> ForwardResult:
        """One packed forward of training windows and inference spans."""
        rows = sorted(rows, key=placement)
        if self.graphs is not None and rows and not windows and self.graphs.covers(rows):
            return self._replay(self.graphs, rows)
        builder = BatchBuilder(self.decoder, self.cache)
        for window in windows:
            builder.add_window(window)
        for row in rows:
            builder.add_row(row)
        hidden = self.decoder.forward(builder.build())
        first = sum(window.count for window in windows)
        prompt_logprobs = self._prompt_logprobs(rows, hidden[first:])
        return ForwardResult(self._sample(rows, hidden[first:]), prompt_logprobs, hidden)

    def _replay(self, graphs: StepGraphs, rows: list[InferenceRow]) -> ForwardResult:
        """A step of single tokens, each of which completes its sequence."""
        logits = graphs.logits(rows)
        sequences = [row.sequence for row in rows]
        sampled = self.sampler.sample(logits, sequences)
        by_id = {s.id: token for s, token in zip(sequences, sampled, strict=True)}
        return ForwardResult(by_id, {}, logits[:0])

    def _sample(self, rows: list[InferenceRow], hidden: Tensor) -> dict[str, SampledToken]:
        """Draw a token for every span that completes its sequence."""
        last_rows, sequences = [], []
        row = 0
        for item in rows:
            row += item.span.count
            if item.completes:
                last_rows.append(row - 1)
                sequences.append(item.sequence)
        if not sequences:
            return {}
        logits = self.decoder.logits(hidden[upload(last_rows, torch.int64, self.device)])
        sampled = self.sampler.sample(logits, sequences)
        return {s.id: token for s, token in zip(sequences, sampled, strict=True)}

    def _prompt_logprobs(
        self, rows: list[InferenceRow], hidden: Tensor
    ) -> dict[str, list[TokenLogprobs]]:
        """Score the prompt tokens that follow each row, for requests that ask for it."""
        result = {}
        row = 0
        for item in rows:
            sampling, sequence = item.sequence.request.sampling, item.sequence
            if sampling.prompt_logprobs:
                stop = min(item.span.start + item.span.count, sequence.num_prompt_tokens - 1)
                logits = self.decoder.logits(hidden[row : row + max(0, stop - item.span.start)])
                scores = torch.log_softmax(logits.float(), dim=-1)
                following = sequence.token_ids[item.span.start + 1 : stop + 1]
                result[sequence.id] = [
                    score(line, token, sampling.num_logprobs or 0)
                    for line, token in zip(scores, following, strict=True)
                ]
            row += item.span.count
        return result
