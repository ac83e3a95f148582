"""Where a part runs and on what sizes, and how it takes time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from workers.family import base_config
from workers.hf_config import HfConfig
from workers.model import DecoderConfig

Figures = dict[str, object]

LLAMA_8B: dict[str, int | bool] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LLAMA_1B: dict[str, int | bool] = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
TINY: dict[str, int | bool] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
POSITIONS = 131_072
LAYER_OF_8B = {**LLAMA_8B, "vocab_size": 512, "num_hidden_layers": 1}
SHAPES: dict[str, dict[str, int | bool]] = {
    "8b": LLAMA_8B,
    "8b-layer": LAYER_OF_8B,
    "1b": LLAMA_1B,
    "tiny": TINY,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One run's device and sizes."""

    device: torch.device
    is_tiny: bool

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights, K/V and adapters."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def models(self) -> tuple[str, ...]:
        """Shapes that are measured, the larger first."""
        return ("tiny",) if self.is_tiny else ("8b", "1b")

    @property
    def largest(self) -> str:
        """The shape of parts that take one."""
        return self.models[0]

    @property
    def seconds(self) -> float:
        """How long a rate is measured."""
        return 0.3 if self.is_tiny else 3.0

    def synchronize(self) -> None:
        """Wait until the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time_s(
        self, run: Callable[[], object], *, warm: int = 3, seconds: float | None = None
    ) -> float:
        """Mean seconds of a call, over calls that fill `seconds`, after `warm` more.

        By default they fill a tenth of the time in which a rate is measured.
        """
        enough_s = self.seconds / 10 if seconds is None else seconds
        for _ in range(1 if self.is_tiny else warm):
            run()
        self.synchronize()
        began_s, count = time.perf_counter(), 0
        while True:
            run()
            count += 1
            if time.perf_counter() - began_s >= enough_s or count >= 100:
                self.synchronize()
                return (time.perf_counter() - began_s) / count


def hf_llama(shape: str, positions: int = POSITIONS) -> dict[str, object]:
    """The Hugging Face config of a shape, as keywords."""
    return {
        **SHAPES[shape],
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def llama_config(shape: str, positions: int = POSITIONS) -> DecoderConfig:
    """Our config of a shape."""
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        **hf_llama(shape, positions),
    }
    return base_config(HfConfig.model_validate(fields))


def linear_parameters(config: DecoderConfig) -> int:
    """Weights that every token multiplies in the layers, without the vocabulary's."""
    attention = config.hidden_size * (config.qkv_size + config.q_size)
    return config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
