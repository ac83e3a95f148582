"""Which part of a base model one rank of a group holds.

q, k, v, gate and up are cut by outputs (whole heads, whole channels), o and down by the inputs that
those outputs are. Norms, embedding and vocabulary projection lie whole on every rank. A rank's part
is a decoder of its own with fewer heads and channels: all that counts with a DecoderConfig, from
K/V pages to the terms of adapters, is cut by being made for that config.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from scheduler.domain.errors import InvalidInput
from workers.model import DecoderConfig

OUTPUTS, INPUTS = 0, 1  # dimensions of a weight
CUT = (OUTPUTS, INPUTS, OUTPUTS, INPUTS)  # by QKV, OUT, GATE_UP, DOWN


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `rank` of `size` equal ones."""

    rank: int = 0
    size: int = 1

    def config(self, whole: DecoderConfig) -> DecoderConfig:
        """The decoder that this part is.

        Raises:
            InvalidInput: heads or channels cannot be shared out evenly.
        """
        if self.size == 1:
            return whole
        counts = ("num_heads", "num_kv_heads", "intermediate_size")
        for name in counts:
            if getattr(whole, name) % self.size:
                raise InvalidInput(
                    f"A model with {name} = {getattr(whole, name)} cannot be shared by "
                    f"{self.size} ranks; tensor_parallel must divide it."
                )
        return replace(whole, **{name: getattr(whole, name) // self.size for name in counts})

    def part(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's part of a tensor, a view."""
        return whole.chunk(self.size, dim)[self.rank]


WHOLE = Shard()
