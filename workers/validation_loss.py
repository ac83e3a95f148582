"""The mean validation loss of a base model under parameters that somebody wants to judge."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scheduler.domain.adapter_order import VALIDATION_TOKENS
from scheduler.domain.errors import InvalidInput
from scheduler.policy.blocks import BlockPool
from scheduler.policy.pack_cursor import PackCursor
from scheduler.text import dataset
from workers.activations import ActivationSpec, SaveLevel
from workers.adapter_arena import AdapterArena
from workers.adapter_file import LoadedAdapter
from workers.adapter_rows import AdapterRows, AdapterRun
from workers.base_weights import WeightFolder, load_weights
from workers.batch import ForwardBatch, TrainWindow
from workers.decoder import Decoder
from workers.kernels.cpu_kernels import cpu_kernels
from workers.kv_cache import KVCache
from workers.loss import window_loss
from workers.model import DecoderConfig
from workers.pack_layout import PackLayout
from workers.span_attention import pack_attention
from workers.train_data import pack_examples
from workers.train_pack import PackTokens, TrainPack
from workers.training_memory import TrainingMemory

PACK_TOKENS = 512
BLOCK_TOKENS = 16


class ValidationLoss:
    """Loads the base once, then judges adapters of ranks up to `max_rank`.

    Args:
        base: the base model's folder.
        config: its shapes.
        data: an encoded data set; its first examples are read.
        max_rank: rank columns to make room for.

    Raises:
        InvalidInput: the data set does not fit the base model, or trains on nothing.
    """

    def __init__(self, base: Path, config: DecoderConfig, data: Path, max_rank: int) -> None:
        device = torch.device("cpu")
        dtype = torch.bfloat16 if cpu_kernels(torch.bfloat16) else torch.float32
        weights = load_weights(WeightFolder(base), config, dtype, device)
        self._decoder = Decoder(config, weights, AdapterArena(config, max_rank, dtype, device))
        self._spec = ActivationSpec.of(config, dtype)
        self._packs = first_packs(data, config)
        self._memory = self._room_for(
            max(self._layout(p.num_tokens).num_bytes for p in self._packs)
        )

    @torch.inference_mode()
    def of(self, adapter: LoadedAdapter) -> float:
        """Nats per trained token.

        Raises:
            InvalidInput: its rank is over the limit.
        """
        method, arena = adapter.method, self._decoder.arena
        if method.rank > arena.num_columns:
            raise InvalidInput(f"The adapter has rank {method.rank}; {arena.num_columns} fit.")
        columns = method.columns()
        params = {name: tensor.float() for name, tensor in adapter.params.items()}
        method.lower(params, arena.terms(columns))
        parts = [
            self._pack_loss(tokens, AdapterRun(0, tokens.num_tokens, columns))
            for tokens in self._packs
        ]
        arena.clear(columns)
        loss, _, weight = torch.stack(parts).sum(0).tolist()
        return float(loss / weight)

    def _layout(self, num_tokens: int) -> PackLayout:
        layers = self._decoder.config.num_layers
        return PackLayout(self._spec, SaveLevel.INPUTS, num_tokens, layers, trains=False)

    def _room_for(self, num_bytes: int) -> TrainingMemory:
        """Memory that holds one pack at a time."""
        config, dtype = self._decoder.config, self._spec.dtype
        num_blocks = -(-num_bytes // KVCache.bytes_per_block(config, BLOCK_TOKENS, dtype)) + 1
        cache = KVCache(config, num_blocks, BLOCK_TOKENS, dtype, self._decoder.weights.device)
        return TrainingMemory(BlockPool(num_blocks, BLOCK_TOKENS), cache, cache.storage.nbytes)

    def _pack_loss(self, tokens: PackTokens, run: AdapterRun) -> Tensor:
        """The loss sums of one pack, whose keys and values are forgotten afterwards."""
        config, n = self._decoder.config, tokens.num_tokens
        layout = self._layout(n)
        loan = self._memory.try_borrow(self._memory.blocks_for(layout.num_bytes))
        assert loan is not None
        cursor = PackCursor.begin(
            n, config.num_layers, trains=False, window_tokens=n, range_tokens=n
        )
        pack = TrainPack.within(loan, layout, tokens, cursor)
        window = TrainWindow(pack, 0, n, 0, pack.layers)
        cos, sin = self._decoder.rotary.at(tokens.positions)
        batch = ForwardBatch(
            token_ids=tokens.token_ids,
            cos=cos,
            sin=sin,
            adapters=AdapterRows([run]),
            windows=[window],
            groups=pack_attention(window, config),
        )
        hidden = self._decoder.forward(batch)
        sums, _ = window_loss(self._decoder, hidden, tokens, 0, wants_grad=False)
        loan.end()
        return sums


def first_packs(data: Path, config: DecoderConfig) -> list[PackTokens]:
    """The first examples of a data set, up to VALIDATION_TOKENS, but at least one.

    Raises:
        InvalidInput: it does not fit the base model, or trains on nothing.
    """
    examples = dataset.read(data)
    if not 0 <= examples.token_ids.min() <= examples.token_ids.max() < config.vocab_size:
        raise InvalidInput("The validation file holds a token id outside the vocabulary.")
    lengths = np.diff(examples.offsets)
    if int(lengths.max()) > config.max_model_len:
        raise InvalidInput("The validation file holds an example longer than the context.")
    count = sum(total <= VALIDATION_TOKENS for total in accumulate(lengths.tolist())) or 1
    packs = pack_examples(examples, list(range(count)), PACK_TOKENS)
    if sum(pack.total_weight for pack in packs) == 0:
        raise InvalidInput("The validation file trains on no token, so it cannot judge.")
    return packs
