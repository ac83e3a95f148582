"""Rotary frequencies against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from scheduler.domain.errors import InvalidInput
from workers.hf_config import HfConfig
from workers.rope import rotary

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("linear", {"factor": 3.0}),
        ("llama3", LLAMA3),
        ("yarn", YARN),
        ("yarn", {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False}),
        ("yarn", {**YARN, "attention_factor": 1.3}),
        ("yarn", {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8}),
    ],
)
def test_frequencies_are_those_of_transformers(kind: str, options: dict[str, float]) -> None:
    parameters = {"rope_type": kind, "rope_theta": 50_000.0, **options}
    oracle = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters=dict(parameters),
    )

    frequencies, scale = rotary(parameters, 64, 4096)

    want, want_scale = ROPE_INIT_FUNCTIONS[kind](oracle, torch.device("cpu"))
    torch.testing.assert_close(frequencies, want, rtol=1e-6, atol=0)
    assert scale == pytest.approx(want_scale)


def test_a_type_that_follows_the_length_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"dynamic.*known: default, linear, llama3, yarn"):
        rotary({"rope_type": "dynamic", "rope_theta": 1e4}, 64, 4096)


def test_the_older_layout_means_the_same_as_the_newer() -> None:
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "max_position_embeddings": 4096,
    }
    old = {**shape, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    new = {**shape, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}

    assert (
        HfConfig.model_validate(old).rope_parameters == HfConfig.model_validate(new).rope_parameters
    )
