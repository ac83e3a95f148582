"""Turns a step's plan into tensors, runs the packed forward, and draws the next tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scheduler.domain.messages import TokenLogprobs
from scheduler.domain.request import Sequence
from workers.batch_builder import BatchBuilder, InferenceRow, PackWindow, placement
from workers.decoder import Decoder
from workers.device_copy import upload
from workers.drawn_tokens import DrawnTokens
from workers.kv_cache import KVCache
from workers.logit_mixing import mix_groups, weighted_sum
from workers.newest_draw import NewestDraw
from workers.sampler import Sampler
from workers.step_graphs import StepGraphs
from workers.token_scores import read_score, score


@dataclass(slots=True)
class ForwardResult:
    """What a packed forward gave.

    Attributes:
        drawn: the next token of each group whose spans complete; None: there is none.
        prompt_logprobs: scores of prompt tokens start + 1 .. by the lead's id, where asked for.
        hidden: rows after the last layer; training windows come first, in order.
    """

    drawn: DrawnTokens | None
    prompt_logprobs: dict[str, list[TokenLogprobs]]
    hidden: Tensor


class ModelRunner:
    """Runs one base model.

    Args:
        decoder: the model.
        cache: its pages.
        max_num_sequences: most of them in one step.

    Attributes:
        reads_late: whether the next step may be issued before this one's tokens are read.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, max_num_sequences: int = 256) -> None:
        self.decoder = decoder
        self.cache = cache
        self.sampler = Sampler(decoder.group)
        self.device = decoder.weights.device
        self.newest_draw = NewestDraw(max_num_sequences, self.device)
        self.graphs = StepGraphs.try_of(decoder, cache, self.newest_draw)
        self.reads_late = self.graphs is not None and decoder.group.is_alone

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
        batch = builder.build()
        if min(builder.token_ids) < 0:
            batch.token_ids = self.newest_draw.resolve(batch.token_ids)
        hidden = self.decoder.forward(batch)
        first = sum(window.count for window in windows)
        prompt_logprobs = self._prompt_logprobs(rows, hidden[first:])
        return ForwardResult(self._sample(rows, hidden[first:]), prompt_logprobs, hidden)

    def _replay(self, graphs: StepGraphs, rows: list[InferenceRow]) -> ForwardResult:
        """A step of single tokens, each of which completes its sequence."""
        logits = graphs.logits(rows)
        drawn = self._draw(logits, [row.sequence for row in rows])
        return ForwardResult(drawn, {}, logits[:0])

    def _sample(self, rows: list[InferenceRow], hidden: Tensor) -> DrawnTokens | None:
        """Draw a token for every group whose spans complete its sequences."""
        last_rows, sequences = [], []
        row = 0
        for item in rows:
            row += item.span.count
            if item.completes:
                last_rows.append(row - 1)
                sequences.append(item.sequence)
        if not sequences:
            return None
        if len(last_rows) < len(hidden):
            hidden = hidden[upload(last_rows, torch.int64, self.device)]
        return self._draw(self.decoder.logits(hidden), sequences)

    def _draw(self, logits: Tensor, sequences: list[Sequence]) -> DrawnTokens:
        """The next token of each group."""
        drawn = self.sampler.sample(*mix_groups(logits, sequences))
        self.newest_draw.keep(drawn.token_ids)
        return drawn

    def _prompt_logprobs(
        self, rows: list[InferenceRow], hidden: Tensor
    ) -> dict[str, list[TokenLogprobs]]:
        """Score the prompt tokens that follow each row, for requests that ask for it."""
        if not any(item.sequence.request.sampling.prompt_logprobs for item in rows):
            return {}
        result, begins, row = {}, {}, 0
        for item in rows:
            begins[item.sequence.id] = row
            row += item.span.count
        for item in rows:
            lead, span = item.sequence, item.span
            if lead.member == 0 and lead.request.sampling.prompt_logprobs:
                stop = min(span.start + span.count, lead.num_prompt_tokens - 1)
                first = [begins[member.id] for member in lead.group]
                count = max(0, stop - span.start)
                logits = (self.decoder.logits(hidden[i : i + count]) for i in first)
                following = lead.token_ids[span.start + 1 : stop + 1]
                result[lead.id] = _scores(weighted_sum(logits, lead), following, lead)
        return result


def _scores(logits_TV: Tensor, token_ids: list[int], lead: Sequence) -> list[TokenLogprobs]:
    """Log-probabilities of the tokens that follow."""
    num_alternatives = lead.request.sampling.num_logprobs or 0
    following = upload(token_ids, torch.int64, logits_TV.device)
    lines = score(logits_TV, following, num_alternatives).tolist()
    return [read_score(line, num_alternatives) for line in lines]
