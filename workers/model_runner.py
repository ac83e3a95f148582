"""Turns a step's plan into tensors, runs the packed forward, and draws the next tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scheduler.domain.messages import TokenLogprobs
from scheduler.domain.plan import Span
from scheduler.domain.request import Sequence
from workers.adapter_arena import AdapterColumns
from workers.attention import Extent
from workers.batch import CacheRows, ForwardBatch, TrainWindow, paged_groups, window_groups
from workers.decoder import Decoder
from workers.kernels.segmented import LONG_RUN_ROWS, AdapterRows, AdapterRun
from workers.kv_cache import KVCache
from workers.sampler import SampledToken, Sampler, score
from workers.train_pack import TrainPack


@dataclass(frozen=True, slots=True)
class InferenceRow:
    """A span with its sequence and the arena columns of its adapter."""

    span: Span
    sequence: Sequence
    columns: AdapterColumns | None

    @property
    def completes(self) -> bool:
        """Whether the span computes the sequence's last token, so that a next one can be drawn."""
        return self.span.start + self.span.count == len(self.sequence.token_ids)


@dataclass(frozen=True, slots=True)
class PackWindow:
    """Tokens [start, start + count) of a pack, with the arena columns of its job."""

    pack: TrainPack
    start: int
    count: int
    columns: AdapterColumns


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

    @torch.inference_mode()
    def run(self, rows: list[InferenceRow], windows: list[PackWindow]) -> ForwardResult:
        """One packed forward of training windows and inference spans."""
        rows = sorted(rows, key=_placement)
        batch = self._batch(rows, windows)
        hidden = self.decoder.forward(batch)
        first = sum(window.count for window in windows)
        prompt_logprobs = self._prompt_logprobs(rows, hidden[first:])
        return ForwardResult(self._sample(rows, hidden[first:]), prompt_logprobs, hidden)

    def _batch(self, rows: list[InferenceRow], windows: list[PackWindow]) -> ForwardBatch:
        tokens, positions = [], []
        runs: list[AdapterRun] = []
        placed: list[TrainWindow] = []
        row = 0
        for window in windows:
            place = slice(window.start, window.start + window.count)
            tokens.append(window.pack.tokens.token_ids[place])
            positions.append(window.pack.tokens.positions[place])
            placed.append(
                TrainWindow(window.pack, place.start, place.stop, row, window.pack.layers)
            )
            runs.append(AdapterRun(row, row + window.count, window.columns))
            row += window.count
        inference_start = row
        token_ids: list[int] = []
        token_positions: list[int] = []
        extents: list[Extent] = []
        for item in rows:
            span = item.span
            token_ids += item.sequence.token_ids[span.start : span.start + span.count]
            token_positions += range(span.start, span.start + span.count)
            extents.append(Extent(row, span.count, span.start))
            add_run(runs, row, row + span.count, item.columns)
            row += span.count
        tokens.append(torch.tensor(token_ids, dtype=torch.int64, device=self.device))
        positions.append(torch.tensor(token_positions, dtype=torch.int64, device=self.device))
        tables = [item.sequence.block_table for item in rows]
        groups = [group for window in placed for group in window_groups(window, self.device)]
        groups += paged_groups(extents, tables, self.cache, self.device)
        cos, sin = self.decoder.rotary.at(torch.cat(positions))
        return ForwardBatch(
            token_ids=torch.cat(tokens),
            cos=cos,
            sin=sin,
            adapters=AdapterRows(runs),
            windows=placed,
            groups=groups,
            cache=self.cache if rows else None,
            cache_rows=self._cache_rows(rows, inference_start) if rows else None,
        )

    def _cache_rows(self, rows: list[InferenceRow], first: int) -> CacheRows:
        """Page and offset of every inference row's K and V."""
        size = self.cache.block_size
        places = [
            (item.sequence.block_table[position // size], position % size)
            for item in rows
            for position in range(item.span.start, item.span.start + item.span.count)
        ]
        blocks, offsets = torch.tensor(places, device=self.device).T
        return CacheRows(slice(first, first + len(places)), blocks, offsets)

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
        logits = self.decoder.logits(hidden[last_rows])
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


def _placement(item: InferenceRow) -> tuple[bool, int]:
    """Short spans first, those of one adapter side by side, so that runs are contiguous."""
    offset = -1 if item.columns is None else item.columns.offset
    return item.span.count >= LONG_RUN_ROWS, offset


def add_run(runs: list[AdapterRun], start: int, stop: int, columns: AdapterColumns | None) -> None:
    """Append rows of one adapter, joining the run before if it is the same adapter's."""
    if columns is None:
        return
    last = runs[-1] if runs else None
    is_short = stop - start < LONG_RUN_ROWS
    if last is not None and last.stop == start and last.columns == columns and is_short:
        runs[-1] = AdapterRun(last.start, stop, columns)
    else:
        runs.append(AdapterRun(start, stop, columns))
