"""ComPEFT: keep the largest changes from the initial value, as signs times one scale per group.

    change = trained - initial,  kept = the `density` of a group's entries of largest |change|
    decoded = initial + scale * sign(change) on the kept entries, scale = alpha * std(change)

The std is taken over the whole group, kept or not. A group is a tensor, or all A or all B factors:
one threshold over both would keep A's noise and starve B, whose entries are smaller.

Without alpha the scale is sum(change^2) / sum(|kept|): the decoded change then reaches as far in
the true one's direction as that does itself. The best alphas we measured lie near it, and far above
the scale of least squared error, which shortens A and B both, and their product twice.

Source: Yadav, Choshen, Raffel, Bansal 2023, arXiv:2311.13171, section 2, which has one group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from scheduler.domain.errors import InvalidInput
from workers import rice
from workers.codec import CODECS, Codec, Floats, Shapes, flatten, num_entries, unflatten
from workers.peft_method import Params
from workers.rice import Ints, SparseSigns
from workers.ternary import ScaledSigns, TernaryParams, TernaryVector

SCALE = np.dtype("<f4")


@CODECS.register("compeft")
class Compeft(Codec):
    """Ternary changes: Rice-coded in a file, two bitmaps in memory."""

    class Config(Codec.Config):
        """Options of ComPEFT."""

        density: float = Field(0.2, gt=0, le=1, description="Share of the entries that is kept.")
        alpha: float | None = Field(
            None,
            gt=0,
            le=100,
            description="Scale in units of the changes' standard deviation; left out, the one "
            "that keeps the changes' length along their own direction.",
        )
        group_by: Literal["factor", "tensor"] = Field(
            "tensor",
            description="What shares a threshold and a scale: all A or all B, or a tensor.",
        )

    config: Config
    codes_change = True

    def encode(self, params: Params) -> bytes:
        """See Codec."""
        shapes = {name: tuple(tensor.shape) for name, tensor in params.items()}
        return self.pack(self.ternarise(params), shapes)

    def decode(self, payload: bytes, shapes: Shapes) -> Params:
        """See Codec."""
        return self.expand(self.unpack(payload, shapes), shapes)

    def compact(self, payload: bytes, shapes: Shapes) -> Bitmaps:
        """See Codec: expanding bitmaps is far quicker than reading Rice code again."""
        return Bitmaps(self, self.unpack(payload, shapes), shapes)

    def max_bytes(self, shapes: Shapes) -> int:
        """See Codec."""
        groups = self._groups(shapes)
        return SCALE.itemsize * len(groups) + rice.max_bytes(_sizes(groups, shapes))

    def ternarise(self, params: Params) -> TernaryParams:
        """Reduce changes to signs and scales.

        Raises:
            InvalidInput: a change is NaN or infinite.
        """
        groups = self._groups(params)
        return TernaryParams(
            {group: self._reduce(flatten(params, names)) for group, names in groups.items()}
        )

    def pack(self, ternary: TernaryParams, shapes: Shapes) -> bytes:
        """A payload: float32 scales by group, then Rice code of all tensors by group and name."""
        groups = self._groups(shapes)
        scales = np.array([ternary.groups[group].scale for group in groups], SCALE)
        start, parts = 0, []
        for group in groups:
            signs = ternary.groups[group].signs
            sparse = signs.sparse()
            parts.append(SparseSigns(sparse.positions + start, sparse.is_negative))
            start += signs.size
        joined = SparseSigns(
            np.concatenate([part.positions for part in parts]),
            np.concatenate([part.is_negative for part in parts]),
        )
        return scales.tobytes() + rice.encode(joined, _sizes(groups, shapes))

    def unpack(self, payload: bytes, shapes: Shapes) -> TernaryParams:
        """Undo `pack`, bit for bit.

        Raises:
            InvalidInput: see `decode`.
        """
        groups = self._groups(shapes)
        head = SCALE.itemsize * len(groups)
        if len(payload) < head:
            raise InvalidInput("The archive is torn: it ends before its scales.")
        scales = np.frombuffer(payload[:head], SCALE)
        if not (np.isfinite(scales) & (scales >= 0)).all():
            raise InvalidInput("The archive holds a scale that is negative or not finite.")
        signs = rice.decode(payload[head:], _sizes(groups, shapes))
        sizes = [num_entries({name: shapes[name] for name in names}) for names in groups.values()]
        parts = _split(signs, sizes)
        return TernaryParams(
            {
                group: ScaledSigns(float(scale), TernaryVector.of(part, size))
                for group, scale, part, size in zip(groups, scales, parts, sizes, strict=True)
            }
        )

    def expand(self, ternary: TernaryParams, shapes: Shapes) -> Params:
        """Dense float32 changes."""
        params: Params = {}
        for group, names in self._groups(shapes).items():
            scaled = ternary.groups[group]
            flat = scaled.signs.dense() * np.float32(scaled.scale)
            params |= unflatten(flat, shapes, names)
        return params

    def _groups(self, named: Shapes | Params) -> dict[str, list[str]]:
        """Group -> names of its tensors, both sorted."""
        groups: dict[str, list[str]] = {}
        for name in sorted(named):
            groups.setdefault(self._group(name), []).append(name)
        return dict(sorted(groups.items()))

    def _group(self, name: str) -> str:
        """`...q_proj.lora_A.weight` belongs to `lora_A`."""
        if self.config.group_by == "tensor":
            return name
        return name.removesuffix(".weight").rsplit(".", 1)[-1]

    def _reduce(self, change: Floats) -> ScaledSigns:
        kept = largest(change, self.config.density)
        signs = SparseSigns(kept, change[kept] < 0)
        return ScaledSigns(self._scale(change, kept), TernaryVector.of(signs, len(change)))

    def _scale(self, change: Floats, kept: Ints) -> float:
        """A float32 number, so that it is the same after it has been stored."""
        if len(kept) == 0:
            return 0.0
        if self.config.alpha is None:
            length = float(np.square(change, dtype=np.float64).sum())
            return float(np.float32(length / np.abs(change[kept]).sum(dtype=np.float64)))
        if len(change) == 1:
            return abs(float(change[0]))
        return float(np.float32(self.config.alpha * change.std(dtype=np.float64, ddof=1)))


@dataclass(frozen=True, slots=True)
class Bitmaps:
    """Signs and scales in host memory: two bits a number."""

    codec: Compeft
    ternary: TernaryParams
    shapes: Shapes

    @property
    def num_bytes(self) -> int:
        """See CompactParams."""
        return self.ternary.num_bytes

    def expand(self) -> Params:
        """See CompactParams."""
        return self.codec.expand(self.ternary, self.shapes)


def largest(values: Floats, density: float) -> Ints:
    """Ascending positions of the `density` of entries of largest size; zeros are never among them.

    Of equal entries at the threshold the first are kept, so the count is exact.
    """
    size = np.abs(values)
    count = min(max(math.floor(density * len(values)), 1), int(np.count_nonzero(size)))
    if count == 0:
        return np.zeros(0, np.int64)
    threshold = np.partition(size, len(size) - count)[len(size) - count]
    above = np.flatnonzero(size > threshold)
    ties = np.flatnonzero(size == threshold)[: count - len(above)]
    positions: Ints = np.sort(np.concatenate((above, ties)))
    return positions


def _sizes(groups: dict[str, list[str]], shapes: Shapes) -> Ints:
    names = [name for group in groups.values() for name in group]
    return np.array([math.prod(shapes[name]) for name in names], np.int64)


def _split(signs: SparseSigns, sizes: list[int]) -> list[SparseSigns]:
    """Cut signs at the ends of groups; each part counts from its own start."""
    stops = np.cumsum(sizes)
    cuts = np.searchsorted(signs.positions, stops[:-1])
    return [
        SparseSigns(positions - (stop - size), is_negative)
        for positions, is_negative, stop, size in zip(
            np.split(signs.positions, cuts),
            np.split(signs.is_negative, cuts),
            stops,
            sizes,
            strict=True,
        )
    ]
