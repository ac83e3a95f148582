"""What the model families share when they read a Hugging Face config."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from scheduler.domain.errors import InvalidInput
from workers.model import DecoderConfig

FIXED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def require(condition: bool, message: str) -> None:
    """Refuse a config.

    Raises:
        InvalidInput: `condition` does not hold.
    """
    if not condition:
        raise InvalidInput(message)


def layer_windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    """Per-layer attention windows of families that list `layer_types`."""
    return tuple(
        config.sliding_window if kind == "sliding_attention" else None
        for kind in config.layer_types
    )


def rotary(config: PretrainedConfig, head_dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies (head_dim / 2,) in float32, and the factor on cos and sin.

    Raises:
        InvalidInput: a RoPE type whose frequencies change with the sequence length.
    """
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    require(
        kind in FIXED_ROPE_TYPES,
        f"RoPE type {kind!r} is not supported; known: {', '.join(FIXED_ROPE_TYPES)}.",
    )
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return 1.0 / parameters["rope_theta"] ** exponents, 1.0
    inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return inv_freq.float(), float(scale)


def base_config(
    config: PretrainedConfig,
    *,
    has_qkv_bias: bool = False,
    has_qk_norm: bool = False,
    windows: tuple[int | None, ...] | None = None,
) -> DecoderConfig:
    """The Llama layout of `config`, with the given departures.

    Raises:
        InvalidInput: an activation other than SiLU, or heads that do not group evenly.
    """
    require(config.hidden_act == "silu", f"Activation {config.hidden_act!r} is not supported.")
    num_kv_heads = config.num_key_value_heads or config.num_attention_heads
    require(config.num_attention_heads % num_kv_heads == 0, "Heads do not group evenly.")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inv_freq, rope_scale = rotary(config, head_dim)
    return DecoderConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        max_model_len=config.max_position_embeddings,
        rms_eps=config.rms_norm_eps,
        has_qkv_bias=has_qkv_bias,
        has_qk_norm=has_qk_norm,
        tie_embeddings=bool(config.tie_word_embeddings),
        windows=windows or (None,) * config.num_hidden_layers,
        inv_freq=inv_freq,
        rope_scale=rope_scale,
    )
