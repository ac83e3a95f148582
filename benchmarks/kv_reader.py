"""Reads a text once, and goes on with it over what any KV policy keeps of it.

All parts are the engine's own: runner, observation, policies, pages, attention. Only its loop is
left out, for it would compute the text again for every policy. The engine does the same with a
request whose answer was begun: a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scheduler.domain.plan import Span
from scheduler.domain.request import RequestBody, Sequence
from scheduler.policy.blocks import BlockPool
from workers.adapter_arena import AdapterArena
from workers.architecture import decoder_config
from workers.base_weights import WeightFolder, load_weights
from workers.batch_builder import InferenceRow
from workers.decoder import Decoder
from workers.head_pages import HeadPages
from workers.held_slots import HeldSlots
from workers.hf_config import read_hf_config
from workers.kept_slots import lay_out, store_kept
from workers.kv_cache import KVCache
from workers.kv_policies import KV_POLICIES
from workers.kv_policy import KvPolicy
from workers.kv_watch import KvWatch, WatchedLayers
from workers.model_runner import ModelRunner

PAGE_TOKENS = 32
CHUNK_TOKENS = 2048
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Continued:
    """A text's tail, computed over what was kept of the tokens before it.

    Attributes:
        logits_NV: of the tokens that follow the tail's first, second, ... token.
        num_bytes: slots and log-counts that stand for the tokens before the tail.
    """

    logits_NV: Tensor
    num_bytes: int


class Reader:
    """A model and a pool of pages."""

    def __init__(self, folder: Path, most_tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
        config = decoder_config(read_hf_config(folder))
        weights = load_weights(WeightFolder(folder), config, dtype, CPU)
        decoder = Decoder(config, weights, AdapterArena(config, 1, dtype, CPU))
        num_blocks = 1 + -(-most_tokens // PAGE_TOKENS)
        self.pool = BlockPool(num_blocks, PAGE_TOKENS)
        self.cache = KVCache(config, num_blocks, PAGE_TOKENS, dtype, CPU)
        self.runner = ModelRunner(decoder, self.cache)
        self.config = config
        self.slot_bytes = 2 * config.head_dim * dtype.itemsize

    def open(self, token_ids: list[int], window: int, num_queries: int) -> OpenText:
        """A text of which nothing is computed yet; see `OpenText`."""
        return OpenText(self, token_ids, window, num_queries)

    def logits(self, rows: list[InferenceRow]) -> Tensor:
        """Run rows, and predict the token after each: (rows, vocab)."""
        return self.runner.decoder.logits(self.runner.run(rows, []).hidden).float()


class OpenText:
    """One text whose first tokens are in the cache, and what was seen of their attention.

    Its last token is never computed: nothing is asked after it.

    Args:
        reader: whose model and pages.
        token_ids: the whole text.
        window: last tokens whose queries policies see.
        num_queries: queries that column sums count, evenly over the text.
    """

    def __init__(self, reader: Reader, token_ids: list[int], window: int, num_queries: int) -> None:
        body = RequestBody(
            request_id="text", tenant_id="bench", base_model="text", prompt_token_ids=(0,)
        )
        self.reader, self._body = reader, body
        blocks = reader.pool.allocate("whole", reader.pool.blocks_for(len(token_ids)))
        reader.cache.clear(blocks)
        self._whole = Sequence(body, 0, token_ids, 0.0, block_table=blocks)
        observed = KV_POLICIES["h2o"]
        options = {"budget": 1.0, "window": window, "num_queries": num_queries}
        policy = observed(observed.Config.model_validate(options))
        self._watch = KvWatch(policy, reader.config.num_layers, len(token_ids), 0)
        self.num_read = 0

    def close(self) -> None:
        """Give the pages back."""
        self.reader.pool.free("whole", self._whole.block_table)

    @torch.inference_mode()
    def read_to(self, stop: int) -> Tensor:
        """Compute tokens up to `stop`; logits of the token there, (vocab,)."""
        for start in range(self.num_read, stop, CHUNK_TOKENS):
            count = min(CHUNK_TOKENS, stop - start)
            span = Span(self._whole.id, start, count)
            logits = self.reader.logits([InferenceRow(span, self._whole, None, self._watch)])
        self.num_read = stop
        return logits[-1]

    @torch.inference_mode()
    def continue_whole(self) -> Continued:
        """The tail over all of the K/V."""
        num_heads = self.reader.config.num_layers * self.reader.config.num_kv_heads
        num_bytes = num_heads * self.num_read * self.reader.slot_bytes
        return Continued(self.reader.logits([self._tail_of(self._whole)]), num_bytes)

    @torch.inference_mode()
    def continue_under(self, policies: list[KvPolicy]) -> list[Continued]:
        """The tail over what each policy keeps, all in one batch."""
        sequences = [self._compressed(policy, place) for place, policy in enumerate(policies)]
        logits = self.reader.logits([self._tail_of(sequence) for sequence in sequences])
        continued = []
        for sequence, part in zip(sequences, logits.chunk(len(sequences)), strict=True):
            assert isinstance(sequence.layout, HeadPages)
            continued.append(Continued(part, self._held_bytes(sequence.layout)))
            self.reader.pool.free(sequence.id, sequence.block_table)
        return continued

    def _compressed(self, policy: KvPolicy, place: int) -> Sequence:
        """A sequence of its own with what a policy keeps of the tokens read."""
        cache, pool = self.reader.cache, self.reader.pool
        held = HeldSlots.of(self._whole, self.num_read, cache)
        kept = policy.compress(WatchedLayers(self._watch, held))
        layout = lay_out(kept, self.num_read, cache.block_size)
        sequence = Sequence(self._body, place, self._whole.token_ids, 0.0, layout=layout)
        count = layout.blocks_for(len(sequence.token_ids))
        sequence.block_table = pool.allocate(sequence.id, count)
        cache.clear(sequence.block_table)
        store_kept(kept, layout, sequence.block_table, cache)
        return sequence

    def _tail_of(self, sequence: Sequence) -> InferenceRow:
        count = len(sequence.token_ids) - 1 - self.num_read
        return InferenceRow(Span(sequence.id, self.num_read, count), sequence, None)

    def _held_bytes(self, layout: HeadPages) -> int:
        slots = int(layout.lengths(layout.num_tokens).sum())
        counts = layout.log_counts_LKN
        return slots * self.reader.slot_bytes + (0 if counts is None else counts.nbytes)
