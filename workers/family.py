"""What the model families share when they read a Hugging Face config."""

from __future__ import annotations

from scheduler.domain.errors import InvalidInput
from workers.hf_config import HfConfig
from workers.model import DecoderConfig
from workers.rope import rotary


def require(condition: bool, message: str) -> None:
    """Refuse a config.

    Raises:
        InvalidInput: `condition` does not hold.
    """
    if not condition:
        raise InvalidInput(message)


def base_config(
    config: HfConfig,
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
    require(config.num_attention_heads % config.num_kv_heads == 0, "Heads do not group evenly.")
    inv_freq, rope_scale = rotary(
        config.rope_parameters, config.head_size, config.max_position_embeddings
    )
    return DecoderConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_size,
        vocab_size=config.vocab_size,
        max_model_len=config.max_position_embeddings,
        rms_eps=config.rms_norm_eps,
        has_qkv_bias=has_qkv_bias,
        has_qk_norm=has_qk_norm,
        tie_embeddings=config.tie_word_embeddings,
        windows=windows or (None,) * config.num_hidden_layers,
        inv_freq=inv_freq,
        rope_scale=rope_scale,
    )
