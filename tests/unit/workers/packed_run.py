"""Runs prompts through the real ModelRunner in random chunks and batches; keeps every logit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scheduler.domain.plan import Span
from scheduler.domain.request import RequestBody, SamplingParams, Sequence
from workers.batch_builder import InferenceRow, PackWindow, placement
from workers.head_pages import HeadPages
from workers.kv_cache import KVCache
from workers.model_runner import ModelRunner
from workers.peft_methods.lora import Lora

if TYPE_CHECKING:
    from random import Random

    from workers.adapter_arena import AdapterColumns
    from workers.adapter_pool import AdapterPool
    from workers.decoder import Decoder
    from workers.model import DecoderConfig
    from workers.peft_method import Params, PeftMethod

BLOCK_SIZE = 4


@dataclass
class Stream:
    """One sequence on its way, and the logits of its rows so far."""

    sequence: Sequence
    columns: AdapterColumns | None
    logits: list[Tensor] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return self.sequence.num_uncomputed_tokens == 0


class PackedRun:
    """A runner whose sequences own random blocks of a page store full of foreign numbers."""

    def __init__(self, decoder: Decoder, random: Random, num_blocks: int = 128) -> None:
        weights = decoder.weights
        self.random = random
        cache = KVCache(decoder.config, num_blocks, BLOCK_SIZE, weights.dtype, weights.device)
        self.runner = ModelRunner(decoder, cache)
        self.free = list(range(1, num_blocks))
        random.shuffle(self.free)
        self.streams: list[Stream] = []

    def add(self, token_ids: list[int], columns: AdapterColumns | None) -> Stream:
        """A sequence with a block table in random order."""
        body = RequestBody(
            request_id=f"r{len(self.streams)}",
            tenant_id="t",
            base_model="m",
            prompt_token_ids=tuple(token_ids),
            sampling=SamplingParams(temperature=0),
        )
        sequence = Sequence(body, 0, list(token_ids), 0.0)
        needed = -(-len(token_ids) // BLOCK_SIZE)
        sequence.block_table = [self.free.pop() for _ in range(needed)]
        self.runner.cache.keys[:, sequence.block_table] = float("nan")
        self.runner.cache.values[:, sequence.block_table] = float("nan")
        self.runner.cache.clear(sequence.block_table)
        self.streams.append(Stream(sequence, columns))
        return self.streams[-1]

    @property
    def is_done(self) -> bool:
        return all(stream.is_done for stream in self.streams)

    def step(self, windows: list[PackWindow] | None = None, max_chunk: int = 24) -> Tensor:
        """Run random chunks of a random choice of sequences; returns all hidden rows."""
        ready = [s for s in self.streams if not s.is_done]
        chosen = self.random.sample(ready, self.random.randint(min(1, len(ready)), len(ready)))
        rows = []
        for stream in chosen:
            most = min(stream.sequence.num_uncomputed_tokens, max_chunk)
            count = self.random.choice((1, self.random.randint(1, most)))
            span = Span(stream.sequence.id, stream.sequence.num_computed_tokens, count)
            rows.append(InferenceRow(span, stream.sequence, stream.columns))
        result = self.runner.run(rows, windows or [])
        row = sum(window.count for window in windows or [])
        by_id = {stream.sequence.id: stream for stream in chosen}
        for item in sorted(rows, key=placement):
            stream, stop = by_id[item.sequence.id], row + item.span.count
            stream.logits.append(self.runner.decoder.logits(result.hidden[row:stop]))
            stream.sequence.num_computed_tokens += item.span.count
            row = stop
        return result.hidden


def compress_heads(stream: Stream, config: DecoderConfig, random: Random) -> None:
    """Give each head pages for random numbers of slots, with or without log-counts."""
    sequence, heads = stream.sequence, (config.num_layers, config.num_kv_heads)
    at = len(sequence.token_ids) - random.randint(4, 6)
    flat = [random.choice((0, random.randint(0, at))) for _ in range(heads[0] * heads[1])]
    kept = torch.tensor(flat).view(heads)
    counts = None
    if random.random() < 0.7:
        generator = torch.Generator().manual_seed(random.randrange(99))
        counts = 3 * torch.rand(*heads, at, generator=generator)
        counts *= torch.arange(at) < kept[..., None]
    sequence.layout = HeadPages(kept, at, BLOCK_SIZE, counts)


def random_lora(
    config: DecoderConfig,
    seed: int,
    rank: int,
    modules: tuple[str, ...],
    dtype: torch.dtype = torch.float32,
    scale: float = 0.2,
) -> tuple[Lora, Params]:
    """A LoRA that changes the model: B is random too."""
    options = {"rank": rank, "alpha": 2 * rank, "target_modules": modules}
    method = Lora(Lora.Config.model_validate(options), config)
    return method, random_params(method, seed, dtype, scale)


def random_params(
    method: PeftMethod, seed: int, dtype: torch.dtype = torch.float32, scale: float = 0.2
) -> Params:
    """Random numbers for all that the method has in its file."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in method.file_shapes().items()
    }


def make_resident(
    pool: AdapterPool, key: str, method: PeftMethod, params: Params
) -> AdapterColumns:
    """Load an adapter into the arena and hold it there."""
    slot = pool.try_reserve(key, method)
    assert slot is not None
    pool.acquire(slot)
    method.lower(params, pool.arena.terms(slot.columns))
    return slot.columns
