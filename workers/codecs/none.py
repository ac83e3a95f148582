"""No compression: the numbers as they are, which is what other codecs are held against."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field

from scheduler.domain.errors import InvalidInput
from workers.codec import CODECS, Codec, Shapes, flatten, num_entries, unflatten
from workers.peft_method import Params

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@CODECS.register("none")
class Uncompressed(Codec):
    """Little-endian floats, end to end."""

    class Config(Codec.Config):
        """Options of the plain codec."""

        dtype: Literal["float32", "bfloat16"] = Field(
            "float32", description="How a number is stored; float32 loses nothing."
        )

    config: Config

    def encode(self, params: Params) -> bytes:
        """See Codec."""
        stored = torch.from_numpy(flatten(params, sorted(params))).to(self._dtype)
        return stored.view(torch.uint8).numpy().tobytes()

    def decode(self, payload: bytes, shapes: Shapes) -> Params:
        """See Codec."""
        if len(payload) != self.max_bytes(shapes):
            raise InvalidInput(
                f"The payload has {len(payload)} bytes, {self.max_bytes(shapes)} fit."
            )
        stored = torch.from_numpy(np.frombuffer(payload, np.uint8).copy()).view(self._dtype)
        flat = stored.float().numpy()
        if not np.isfinite(flat).all():
            raise InvalidInput("The payload holds NaN or infinite numbers.")
        return unflatten(flat, shapes, sorted(shapes))

    def max_bytes(self, shapes: Shapes) -> int:
        """See Codec."""
        return num_entries(shapes) * self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.config.dtype]
