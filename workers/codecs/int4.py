"""Groupwise 4-bit integers of the parameters themselves: a codec to compare ternary ones with."""

from __future__ import annotations

from workers.codec import CODECS
from workers.groupwise_codec import GroupwiseCodec


@CODECS.register("int4")
class Int4(GroupwiseCodec):
    """One of 15 levels for each number, one scale for each group."""

    bits = 4
