"""Safetensors shards written tensor by tensor: nothing but the one at hand is in memory.

A shard's header needs every tensor's size before the first byte, so the shards are planned first.

Source: github.com/huggingface/safetensors, "Format"; index as transformers writes it.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_NOTES = {"format": "pt"}  # transformers refuses a file without it
_ALIGNED = 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is known of a tensor before it is read."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(slots=True)
class Shard:
    """The tensors of one file, in order."""

    specs: list[TensorSpec] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(spec.num_bytes for spec in self.specs)

    def header(self) -> bytes:
        """Length and JSON, padded so that the numbers start aligned."""
        entries: dict[str, Any] = {"__metadata__": _NOTES}
        start = 0
        for spec in self.specs:
            end = start + spec.num_bytes
            entries[spec.name] = {
                "dtype": DTYPE_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [start, end],
            }
            start = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNED)
        return struct.pack("<Q", len(text)) + text


def plan_shards(specs: Iterable[TensorSpec], max_shard_bytes: int) -> list[Shard]:
    """Fill shards in order; a tensor larger than the limit has one for itself."""
    shards = [Shard()]
    for spec in specs:
        if shards[-1].specs and shards[-1].num_bytes + spec.num_bytes > max_shard_bytes:
            shards.append(Shard())
        shards[-1].specs.append(spec)
    return shards


def write_shards(folder: Path, shards: list[Shard], tensors: Iterator[Tensor]) -> None:
    """Write all shards and, if there are several, their index.

    Args:
        folder: where to.
        shards: the plan.
        tensors: exactly the planned ones, in their order.

    Raises:
        ValueError: a tensor is not as planned.
    """
    names = _file_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(shard.header())
            for spec, tensor in zip(shard.specs, tensors, strict=False):
                if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
                    raise ValueError(f"{spec.name} is not as it was planned.")
                file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    if len(shards) > 1:
        weight_map = {
            spec.name: name
            for name, shard in zip(names, shards, strict=True)
            for spec in shard.specs
        }
        total = sum(shard.num_bytes for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _file_names(num_shards: int) -> list[str]:
    if num_shards == 1:
        return ["model.safetensors"]
    return [f"model-{n:05d}-of-{num_shards:05d}.safetensors" for n in range(1, num_shards + 1)]
