"""A Hugging Face config.json, read as it is: no code of the model's, and no import of transformers.

(Importing transformers for its configuration classes alone costs three seconds of every start.)
Both layouts are read: `rope_parameters`, and the older `rope_theta` with `rope_scaling`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scheduler.domain.errors import InvalidInput

DEFAULT_ROPE_THETA = 10_000.0


class HfConfig(BaseModel):
    """The entries that decoders of the Llama family use; all others are ignored.

    Windows that are missing are those that transformers puts in, or long prompts would differ.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    architectures: tuple[str, ...] = ()
    num_hidden_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int | None = Field(None, gt=0)
    head_dim: int | None = Field(None, gt=0)
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0)
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = 4096
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = None
    rope_parameters: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _join_rope(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Write the older layout of RoPE as the newer one."""
        if values.get("rope_parameters"):
            return values
        rope = dict(values.get("rope_scaling") or {})
        rope.setdefault("rope_type", rope.pop("type", "default"))
        rope.setdefault("rope_theta", values.get("rope_theta", DEFAULT_ROPE_THETA))
        return {**values, "rope_parameters": rope}

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads; as many as query heads where the config is silent."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def layer_windows(self) -> tuple[int | None, ...]:
        """Per-layer windows of families whose later layers may slide."""
        if self.layer_types is not None:
            sliding = [kind == "sliding_attention" for kind in self.layer_types]
        else:
            first = self.max_window_layers
            slides = self.use_sliding_window
            sliding = [slides and layer >= first for layer in range(self.num_hidden_layers)]
        return tuple(self.sliding_window if slides else None for slides in sliding)


def read_hf_config(folder: Path) -> HfConfig:
    """Read `folder/config.json`.

    Raises:
        InvalidInput: it is missing, no JSON, or lacks an entry.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise InvalidInput(f"{path} is missing or not JSON.") from None
    if not isinstance(values, dict):
        raise InvalidInput(f"{path} must be a JSON object.")
    try:
        return HfConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(map(str, first["loc"])) or "the whole"
        raise InvalidInput(
            f"{path} is not a decoder's configuration: {entry}: {first['msg']}."
        ) from None
