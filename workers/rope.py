"""Inverse frequencies of rotary embeddings, by RoPE type.

Sources: Su et al. 2021, arXiv:2104.09864 (default); Chen et al. 2023, arXiv:2306.15595 (linear);
Llama 3.1 (low and high frequency factors); Peng et al. 2023, arXiv:2309.00071 (YaRN).
Equal to transformers' ROPE_INIT_FUNCTIONS, by test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scheduler.domain.errors import InvalidInput

Rope = tuple[Tensor, float]
Initialiser = Callable[[Tensor, dict[str, Any], int, int], Rope]


def rotary(parameters: dict[str, Any], head_dim: int, max_model_len: int) -> Rope:
    """Inverse frequencies (head_dim / 2,) in float32, and the factor on cos and sin.

    Raises:
        InvalidInput: a RoPE type whose frequencies change with the sequence length, or an entry
            is missing.
    """
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise InvalidInput(f"RoPE type {kind!r} is not supported; known: {', '.join(ROPE_TYPES)}.")
    try:
        plain = default_frequencies(float(parameters["rope_theta"]), head_dim)
        return ROPE_TYPES[kind](plain, parameters, head_dim, max_model_len)
    except (KeyError, TypeError) as error:
        raise InvalidInput(f"RoPE of type {kind!r} lacks the entry {error}.") from None


def default_frequencies(theta: float, head_dim: int) -> Tensor:
    """Theta ** (-2i / head_dim)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / theta**exponents


def _default(plain: Tensor, parameters: dict[str, Any], head_dim: int, max_len: int) -> Rope:
    del parameters, head_dim, max_len
    return plain, 1.0


def _linear(plain: Tensor, parameters: dict[str, Any], head_dim: int, max_len: int) -> Rope:
    del head_dim, max_len
    return plain / parameters["factor"], 1.0


def _llama3(plain: Tensor, parameters: dict[str, Any], head_dim: int, max_len: int) -> Rope:
    """Long waves are slowed by `factor`, short ones kept, those between blended."""
    del head_dim, max_len
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    old_len = parameters["original_max_position_embeddings"]
    waves = 2 * math.pi / plain
    slowed = plain / parameters["factor"]
    blend = (old_len / waves - low) / (high - low)
    blended = (1 - blend) * slowed + blend * plain
    result = torch.where(waves > old_len / low, slowed, plain)
    is_medium = (waves <= old_len / low) & (waves >= old_len / high)
    return torch.where(is_medium, blended, result), 1.0


def _yarn(plain: Tensor, parameters: dict[str, Any], head_dim: int, max_len: int) -> Rope:
    """Interpolated below, extrapolated above, a linear ramp over the dimensions between."""
    theta = float(parameters["rope_theta"])
    old_len = parameters.get("original_max_position_embeddings") or max_len
    factor = parameters.get("factor") or max_len / old_len

    def dimension(rotations: float) -> float:
        return head_dim * math.log(old_len / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = (
        dimension(parameters.get("beta_fast") or 32),
        dimension(parameters.get("beta_slow") or 1),
    )
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2).float() - low) / ((high - low) or 0.001)
    keep = 1 - ramp.clamp(0, 1)
    return plain / factor * (1 - keep) + plain * keep, _yarn_scale(parameters, factor)


def _yarn_scale(parameters: dict[str, Any], factor: float) -> float:
    """Attention factor: given, or from the extension factor and the mscale entries."""

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return mscale(parameters["mscale"]) / mscale(parameters["mscale_all_dim"])
    return mscale(1.0)


ROPE_TYPES: dict[str, Initialiser] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
