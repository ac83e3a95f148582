"""What the codecs of groupwise integers share: all but the number of bits."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from workers.codec import Codec, Shapes
from workers.groupwise import GroupwiseCode
from workers.peft_method import Params


class GroupwiseCodec(Codec):
    """Integers of `bits` bits, one scale for each group of numbers."""

    bits: ClassVar[int]

    class Config(Codec.Config):
        """Options of the groupwise codecs."""

        group_size: int = Field(64, ge=8, le=4096, description="Numbers that share one scale.")

    config: Config

    def encode(self, params: Params) -> bytes:
        """See Codec."""
        return self._code.encode_all(params)

    def decode(self, payload: bytes, shapes: Shapes) -> Params:
        """See Codec."""
        return self._code.decode_all(payload, shapes)

    def max_bytes(self, shapes: Shapes) -> int:
        """See Codec."""
        return self._code.num_bytes(shapes)

    @property
    def _code(self) -> GroupwiseCode:
        return GroupwiseCode(self.bits, self.config.group_size)
