"""Groupwise 4-bit integers of the parameters themselves: a codec to compare ternary ones with."""

from __future__ import annotations

from pydantic import Field

from workers.codec import CODECS, Codec, Shapes
from workers.groupwise import GroupwiseCode
from workers.peft_method import Params


@CODECS.register("int4")
class Int4(Codec):
    """One of 15 levels for each number, one scale for each group."""

    class Config(Codec.Config):
        """Options of the 4-bit codec."""

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
        return GroupwiseCode(4, self.config.group_size)
