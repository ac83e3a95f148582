"""What a training example keeps between its forward windows and its backward units.

Each layer has named buffers indexed by token. Which names are kept is the save level: everything
that backward reads (`full`), the layer's input and K/V (`inputs`), from which one layer at a time
is computed again, or K/V only (`window_outer`), from which one token range at a time is computed
again through all layers. Frozen linears never keep their input.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from workers.model import DecoderConfig


class SaveLevel(StrEnum):
    """How much of the forward pass stays in memory."""

    FULL = "full"
    INPUTS = "inputs"
    WINDOW_OUTER = "window_outer"


KEYS_AND_VALUES = ("k", "v")
KEPT: dict[SaveLevel, frozenset[str] | None] = {
    SaveLevel.FULL: None,  # all that the family has
    SaveLevel.INPUTS: frozenset({"x", *KEYS_AND_VALUES}),
    SaveLevel.WINDOW_OUTER: frozenset(KEYS_AND_VALUES),
}


@dataclass(frozen=True, slots=True)
class ActivationSpec:
    """Width and dtype of every buffer that one token of one layer may keep."""

    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    wide_dtype: torch.dtype

    @classmethod
    def of(cls, config: DecoderConfig, dtype: torch.dtype) -> ActivationSpec:
        """The buffers of a decoder layer; `heads` is q and k before norm and rotation."""
        kv = (config.num_kv_heads, config.head_dim)
        shapes: dict[str, tuple[int, ...]] = {
            "x": (config.hidden_size,),
            "k": kv,
            "v": kv,
            "q": (config.num_heads, config.head_dim),
            "attn": (config.q_size,),
            "lse": (config.num_heads,),
            "x_mid": (config.hidden_size,),
            "gate_up": (2 * config.intermediate_size,),
        }
        if config.has_qk_norm:
            shapes["heads"] = (config.num_heads + config.num_kv_heads, config.head_dim)
        return cls(shapes, dtype, torch.promote_types(dtype, torch.float32))

    def names(self, level: SaveLevel) -> list[str]:
        """Buffers that stay in memory at `level`."""
        kept = KEPT[level]
        return [name for name in self.shapes if kept is None or name in kept]

    def bytes_per_token(self, level: SaveLevel) -> int:
        """Memory of one token in one layer."""
        return sum(
            torch.Size(self.shapes[name]).numel() * self.dtype_of(name).itemsize
            for name in self.names(level)
        )

    def dtype_of(self, name: str) -> torch.dtype:
        """Log-sum-exps are kept wide; all else in the compute dtype."""
        return self.wide_dtype if name == "lse" else self.dtype


@dataclass(slots=True)
class LayerActivations:
    """Buffers of one layer by name, each for tokens [0, num_tokens) of one pack or range."""

    buffers: dict[str, Tensor]

    @classmethod
    def allocate(
        cls, spec: ActivationSpec, names: list[str], num_tokens: int, device: torch.device
    ) -> LayerActivations:
        """Buffers with memory of their own."""
        return cls(
            {
                name: torch.empty(
                    num_tokens, *spec.shapes[name], dtype=spec.dtype_of(name), device=device
                )
                for name in names
            }
        )

    def __getitem__(self, name: str) -> Tensor:
        return self.buffers[name]

    def put(self, name: str, start: int, rows: Tensor) -> None:
        """Keep rows of tokens [start, ...), if this level keeps `name` at all."""
        if name in self.buffers:
            self.buffers[name][start : start + len(rows)] = rows

    def drop(self, names: list[str]) -> None:
        """Let go of buffers."""
        for name in names:
            self.buffers.pop(name, None)
