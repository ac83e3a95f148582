"""A config.json means the same windows here as in transformers, also where it leaves them out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from scheduler.domain.errors import InvalidInput
from tests.unit.workers.tiny_models import SHAPE
from workers.architecture import decoder_config
from workers.hf_config import read_hf_config

if TYPE_CHECKING:
    from pathlib import Path

DEEP = SHAPE | {"num_hidden_layers": 30}  # deeper than the layers that never slide by default
ARCHITECTURES: dict[type[PreTrainedConfig], str] = {
    LlamaConfig: "LlamaForCausalLM",
    MistralConfig: "MistralForCausalLM",
    Qwen2Config: "Qwen2ForCausalLM",
    Qwen3Config: "Qwen3ForCausalLM",
}


def write_config(folder: Path, family: type[PreTrainedConfig], entries: dict[str, Any]) -> Path:
    architecture = {"architectures": [ARCHITECTURES[family]]}
    (folder / "config.json").write_text(json.dumps(DEEP | architecture | entries))
    return folder


def windows_of_transformers(family: type[PreTrainedConfig], entries: dict[str, Any]) -> list[Any]:
    config: Any = family(**DEEP | entries)
    everywhere = "sliding_attention" if family is MistralConfig else "full_attention"
    kinds = getattr(config, "layer_types", None) or [everywhere] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]


@pytest.mark.parametrize(
    ("family", "entries"),
    [
        (LlamaConfig, {"sliding_window": 9}),
        (MistralConfig, {}),
        (MistralConfig, {"sliding_window": None}),
        (MistralConfig, {"sliding_window": 9}),
        (Qwen2Config, {}),
        (Qwen2Config, {"sliding_window": 9}),
        (Qwen2Config, {"use_sliding_window": True}),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
        (Qwen3Config, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 21}),
        (Qwen3Config, {"use_sliding_window": True, "sliding_window": None}),
    ],
)
def test_layers_slide_where_those_of_transformers_do(
    tmp_path: Path, family: type[PreTrainedConfig], entries: dict[str, Any]
) -> None:
    config = decoder_config(read_hf_config(write_config(tmp_path, family, entries)))

    assert list(config.windows) == windows_of_transformers(family, entries)


def test_layers_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    kinds = ["full_attention"] * 29 + ["chunked_attention"]
    folder = write_config(tmp_path, Qwen3Config, {"layer_types": kinds})

    with pytest.raises(InvalidInput, match=r"layer_types\.29: Input should be 'full_attention' or"):
        read_hf_config(folder)
