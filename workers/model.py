"""What a decoder of the Llama family is, as numbers; one file per family in `models/` fills it in.

Weights, configs and tokenizers come from Hugging Face folders; the decoder that runs them is ours,
because one step must mix tenants, save activations for training rows only, and stop at any layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scheduler.domain.registry import Registry
from workers.frozen_linear import FrozenLinear
from workers.hf_config import HfConfig
from workers.kernels.qkv_rows import HeadNorms
from workers.weight_format import NO_FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Shapes and constants of one decoder.

    Attributes:
        windows: per layer, how many positions a token sees (itself included); None: all before it.
        rope_scale: factor on cos and sin (YaRN's attention factor; 1 for plain RoPE).
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    rms_eps: float
    has_qkv_bias: bool
    has_qk_norm: bool
    tie_embeddings: bool
    windows: tuple[int | None, ...]
    inv_freq: Tensor
    rope_scale: float

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, which is that of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Width of the fused query, key and value projection."""
        return self.q_size + 2 * self.kv_size


@dataclass(frozen=True, slots=True)
class LinearSlice:
    """Where one named projection lies inside its fused linear: output columns [start, stop)."""

    module: str
    start: int
    stop: int

    @property
    def num_features(self) -> int:
        """Outputs of the projection."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """One GEMM of a layer and the named projections that it computes."""

    name: str
    in_features: int
    out_features: int
    slices: tuple[LinearSlice, ...]


def fused_linears(config: DecoderConfig) -> tuple[FusedLinear, ...]:
    """The four GEMMs of every layer, in the order in which they run."""
    q, kv, inner = config.q_size, config.kv_size, config.intermediate_size
    hidden = config.hidden_size
    return (
        FusedLinear(
            "qkv",
            hidden,
            config.qkv_size,
            (
                LinearSlice("q_proj", 0, q),
                LinearSlice("k_proj", q, q + kv),
                LinearSlice("v_proj", q + kv, q + 2 * kv),
            ),
        ),
        FusedLinear("o", q, hidden, (LinearSlice("o_proj", 0, hidden),)),
        FusedLinear(
            "gate_up",
            hidden,
            2 * inner,
            (LinearSlice("gate_proj", 0, inner), LinearSlice("up_proj", inner, 2 * inner)),
        ),
        FusedLinear("down", inner, hidden, (LinearSlice("down_proj", 0, hidden),)),
    )


QKV, OUT, GATE_UP, DOWN = range(4)

MODULE_PATHS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}


@dataclass(slots=True)
class LayerWeights:
    """Frozen weights of one layer.

    Attributes:
        linears: qkv, o, gate_up and down, indexed by QKV, OUT, GATE_UP, DOWN.
        q_norm, k_norm: (head_dim,), in families that normalise each head.
    """

    linears: tuple[FrozenLinear, FrozenLinear, FrozenLinear, FrozenLinear]
    input_norm: Tensor
    post_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None

    def head_norms(self, eps: float) -> HeadNorms | None:
        """The norms of query and key heads, in families that have them."""
        if self.q_norm is None or self.k_norm is None:
            return None
        return HeadNorms(self.q_norm, self.k_norm, eps)


@dataclass(slots=True)
class DecoderWeights:
    """All frozen weights of a base model, on one device in one dtype.

    Attributes:
        weight_format: how the layers' linears are held.
    """

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    lm_head: FrozenLinear
    head_is_tied: bool
    weight_format: str = NO_FORMAT

    @property
    def num_parameters(self) -> int:
        """Parameters, tied ones once."""
        norms = [self.final_norm]
        linears = [] if self.head_is_tied else [self.lm_head]
        for layer in self.layers:
            norms += [layer.input_norm, layer.post_norm]
            norms += [norm for norm in (layer.q_norm, layer.k_norm) if norm is not None]
            linears += layer.linears
        held = sum(linear.num_parameters for linear in linears)
        return self.embedding.numel() + sum(norm.numel() for norm in norms) + held

    @property
    def num_cut_parameters(self) -> int:
        """Those of which each rank of a group has its own."""
        linears = [linear for layer in self.layers for linear in layer.linears]
        return sum(linear.num_parameters for linear in linears)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the GEMMs."""
        return self.embedding.dtype


class ModelFamily(ABC):
    """How one architecture's Hugging Face config maps onto a DecoderConfig."""

    @classmethod
    @abstractmethod
    def decoder_config(cls, config: HfConfig) -> DecoderConfig:
        """Translate the config.

        Raises:
            InvalidInput: the config asks for something that this family's decoder lacks.
        """


MODELS: Registry[ModelFamily] = Registry("model architecture")
