"""Where the buffers of a training pack lie in its memory.

| gradient | of every layer: what stays in any case | of every layer: what can be computed again |

A pack that is asked for memory in mid-work lets go of the end, and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.activations import KEPT, KEYS_AND_VALUES, ActivationSpec, LayerActivations, SaveLevel

ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class PackLayout:
    """Buffers of `num_tokens` tokens in `num_layers` layers, at one save level.

    Attributes:
        trains: False for a validation pack, which keeps K and V only.
    """

    spec: ActivationSpec
    level: SaveLevel
    num_tokens: int
    num_layers: int
    trains: bool = True

    @property
    def lasting(self) -> list[str]:
        """Buffers of a layer that must stay."""
        if not self.trains:
            return list(KEYS_AND_VALUES)
        return [name for name in self.spec.names(self.level) if name in _LASTING]

    @property
    def dispensable(self) -> list[str]:
        """Buffers of a layer that can be computed again from those that last."""
        if not self.trains or self.level is not SaveLevel.FULL:
            return []
        return [name for name in self.spec.names(self.level) if name not in _LASTING]

    @property
    def lasting_bytes(self) -> int:
        """Memory up to the end of what must stay."""
        layer = sum(map(self._bytes, self.lasting))
        return self._bytes("x") + self.num_layers * layer

    @property
    def num_bytes(self) -> int:
        """All of the pack's memory."""
        return self.lasting_bytes + self.num_layers * sum(map(self._bytes, self.dispensable))

    def cut(self, memory: Tensor) -> tuple[Tensor, list[LayerActivations]]:
        """The gradient, zero, and each layer's buffers, undefined, as views of `memory`."""
        pieces = _Pieces(memory)
        grad = pieces.take(self._shape("x"), self.spec.dtype).zero_()
        layers: list[dict[str, Tensor]] = [{} for _ in range(self.num_layers)]
        for names in (self.lasting, self.dispensable):
            for buffers in layers:
                for name in names:
                    buffers[name] = pieces.take(self._shape(name), self.spec.dtype_of(name))
        return grad, [LayerActivations(buffers) for buffers in layers]

    def _shape(self, name: str) -> tuple[int, ...]:
        return (self.num_tokens, *self.spec.shapes[name])

    def _bytes(self, name: str) -> int:
        return aligned(torch.Size(self._shape(name)).numel() * self.spec.dtype_of(name).itemsize)


_LASTING = KEPT[SaveLevel.INPUTS] or frozenset()


class _Pieces:
    """Cuts buffers off a piece of memory, one after the other."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.offset = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        piece = self.memory[self.offset : self.offset + num_bytes]
        self.offset += aligned(num_bytes)
        return piece.view(dtype).view(shape)


def aligned(num_bytes: int) -> int:
    """The next multiple of a cache line."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
