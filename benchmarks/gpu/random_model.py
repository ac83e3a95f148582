"""Llamas of random weights, made on the device that runs them, and random adapters beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.setting import POSITIONS, Setting, linear_parameters, llama_config
from workers.adapter_arena import AdapterArena, AdapterColumns
from workers.decoder import Decoder
from workers.frozen_linear import FrozenLinear
from workers.model import (
    MODULE_PATHS,
    DecoderConfig,
    DecoderWeights,
    LayerWeights,
    fused_linears,
)
from workers.weight_format import NO_FORMAT, find_format

BASE = "random"
SCALE = 0.02
RANK = 16


def random_weights(
    config: DecoderConfig, setting: Setting, weight_format: str = NO_FORMAT
) -> DecoderWeights:
    """Normal weights of a small scale, the layers' held in a format; norms are ones."""
    quantized = find_format(weight_format)

    def matrix(rows: int, columns: int) -> Tensor:
        weight = torch.empty(rows, columns, dtype=setting.dtype, device=setting.device)
        return weight.normal_(0.0, SCALE)

    def ones() -> Tensor:
        return torch.ones(config.hidden_size, dtype=setting.dtype, device=setting.device)

    def layer() -> LayerWeights:
        wide = (matrix(linear.out_features, linear.in_features) for linear in fused_linears(config))
        held = wide if quantized is None else map(quantized.of, wide)
        qkv, out, gate_up, down = map(FrozenLinear, held)
        return LayerWeights((qkv, out, gate_up, down), ones(), ones(), None, None)

    torch.manual_seed(0)
    embedding = matrix(config.vocab_size, config.hidden_size)
    tied = config.tie_embeddings
    head = embedding if tied else matrix(config.vocab_size, config.hidden_size)
    layers = tuple(layer() for _ in range(config.num_layers))
    return DecoderWeights(embedding, layers, ones(), FrozenLinear(head), tied, weight_format)


def random_decoder(
    shape: str,
    setting: Setting,
    num_adapters: int,
    positions: int = POSITIONS,
    weight_format: str = NO_FORMAT,
) -> Decoder:
    """A decoder whose arena holds `num_adapters` random adapters."""
    config = llama_config(shape, positions)
    columns = max(1, num_adapters) * RANK
    arena = AdapterArena(config, columns, setting.dtype, setting.device)
    for matrix in arena.matrices() if num_adapters else ():
        matrix.normal_(0.0, SCALE)
    return Decoder(config, random_weights(config, setting, weight_format), arena)


def adapter_columns(place: int, middle: int = 0) -> AdapterColumns:
    """The place-th adapter of a random decoder, on all linears: LoRA, unless it has a middle."""
    return AdapterColumns(place * RANK, RANK, frozenset(MODULE_PATHS), middle)


def adapter_bytes(decoder: Decoder) -> int:
    """Memory of one adapter of RANK."""
    arena = decoder.arena
    per_column = sum(matrix.nbytes for matrix in arena.matrices()) / arena.num_columns
    return int(per_column * RANK)


def weight_bytes(config: DecoderConfig, setting: Setting) -> int:
    """Weights that a step reads: all layers' and the vocabulary's."""
    parameters = linear_parameters(config) + config.vocab_size * config.hidden_size
    return parameters * setting.dtype.itemsize


def token_bytes(config: DecoderConfig, setting: Setting) -> int:
    """K and V of one token in all layers."""
    return 2 * config.num_layers * config.kv_size * setting.dtype.itemsize
