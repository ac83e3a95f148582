"""A codec for adapters: parameters -> bytes of an archive's payload, and back.

A payload carries numbers only. Names, shapes and their order follow from the method and the base
model, so a decoder knows how long every part must be before it reads one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from scheduler.domain.errors import InvalidInput
from scheduler.domain.registry import PluginConfig, Registry
from workers.peft_method import Params

Shapes = dict[str, tuple[int, ...]]
Floats = NDArray[np.float32]


class CompactParams(Protocol):
    """Coded parameters as they stay in host memory."""

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""

    def expand(self) -> Params:
        """Float32 parameters.

        Raises:
            InvalidInput: the payload was wrong, and only expanding it shows that.
        """


class Codec(ABC):
    """One codec with one configuration.

    Attributes:
        codes_change: it is given the change from the initial value where that can be made again,
            and the parameters themselves otherwise.
    """

    class Config(PluginConfig):
        """Options of the codec."""

    codes_change: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def encode(self, params: Params) -> bytes:
        """Code finite parameters.

        Raises:
            InvalidInput: a number is not finite, or too large for the code.
        """

    @abstractmethod
    def decode(self, payload: bytes, shapes: Shapes) -> Params:
        """Float32 parameters of these shapes.

        Raises:
            InvalidInput: the payload is not exactly what `encode` writes for such shapes.
        """

    def compact(self, payload: bytes, shapes: Shapes) -> CompactParams:
        """The form that stays in memory: the payload, where the codec knows none more apt.

        Raises:
            InvalidInput: see `decode`.
        """
        return CodedParams(self, payload, shapes)

    @abstractmethod
    def max_bytes(self, shapes: Shapes) -> int:
        """No payload of such shapes is longer: what a reader checks before it reads."""


@dataclass(frozen=True, slots=True)
class CodedParams:
    """Parameters in memory as in a file."""

    codec: Codec
    payload: bytes
    shapes: Shapes

    @property
    def num_bytes(self) -> int:
        """See CompactParams."""
        return len(self.payload)

    def expand(self) -> Params:
        """See CompactParams."""
        return self.codec.decode(self.payload, self.shapes)


CODECS: Registry[Codec] = Registry("codec")


def num_entries(shapes: Shapes) -> int:
    """Parameters of all tensors together."""
    return sum(math.prod(shape) for shape in shapes.values())


def flatten(params: Params, names: list[str]) -> Floats:
    """The tensors of `names` end to end, in float32.

    Raises:
        InvalidInput: a number is NaN or infinite.
    """
    flat: Floats = torch.cat(
        [params[name].detach().cpu().float().flatten() for name in names] or [torch.zeros(0)]
    ).numpy()
    if not np.isfinite(flat).all():
        raise InvalidInput("The adapter holds NaN or infinite numbers.")
    return flat


def unflatten(flat: Floats, shapes: Shapes, names: list[str]) -> Params:
    """Undo `flatten`; the tensors are views of `flat`."""
    sizes = [math.prod(shapes[name]) for name in names]
    parts = torch.from_numpy(flat).split(sizes)
    return {name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)}
