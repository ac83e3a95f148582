"""Which devices get a worker, and whether the base models fit on each.

Every worker holds all base models of the service: a request for any of them can then be answered
by any worker. Their weights together, in the dtype or format they are served in, must leave a share
of the device's free memory for K/V and training.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import psutil

from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.base_model import BaseModelFolder

WEIGHTS_SHARE = 0.8  # of the free memory; the rest is for K/V, activations and adapters
BYTES_PER_PARAMETER = {"float32": 4, "bfloat16": 2, "float16": 2}
BYTES_IN_FORMAT = {"int8": 1.0, "fp8": 1.0, "int4": 0.55}  # of linears; embeddings stay wide
_GIB = 2**30
_MIB = 2**20


def parse_devices(written: str) -> list[str]:
    """`cpu` or GPU numbers such as `0,1` -> torch's names.

    Raises:
        InvalidInput: it is neither, or names a device twice.
    """
    if written == "cpu":
        return ["cpu"]
    if not re.fullmatch(r"\d+(,\d+)*", written):
        raise InvalidInput(
            f"--devices {written!r} is neither `cpu` nor GPU numbers such as 0,1.", param="devices"
        )
    numbers = [int(number) for number in written.split(",")]
    if len(set(numbers)) < len(numbers):
        raise InvalidInput(f"--devices {written!r} names a GPU twice.", param="devices")
    return [f"cuda:{number}" for number in numbers]


def serving_dtype(device: str, dtype: str) -> str:
    """What `auto` means on a device."""
    if dtype != "auto":
        return dtype
    return "float32" if device == "cpu" else "bfloat16"


def check_fit(
    device: str, dtype: str, models: Sequence[BaseModelFolder], weight_format: str = "none"
) -> None:
    """Refuse base models whose weights together are too large for a device.

    Quantized models are counted as if they were all linears; wide embeddings live on the margin.

    Raises:
        InvalidInput: they do not fit, or there is no such device.
    """
    wide = BYTES_PER_PARAMETER[serving_dtype(device, dtype)]
    each = BYTES_IN_FORMAT.get(weight_format, wide)
    needed = sum(model.num_parameters for model in models) * each
    room = int(free_memory(device) * WEIGHTS_SHARE)
    if needed > room:
        names = ", ".join(model.id for model in models)
        raise InvalidInput(
            f"{names} need {needed / _GIB:.1f} GiB of weights on {device}, where "
            f"{room / _GIB:.1f} GiB may hold weights; name fewer or smaller models.",
            param="base_model",
        )


def free_memory(device: str) -> int:
    """Bytes that are free on a device.

    Raises:
        InvalidInput: there is no such device.
    """
    if device == "cpu":
        return int(psutil.virtual_memory().available)
    command = ["nvidia-smi", "--query-gpu=index,memory.free", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        raise InvalidInput(
            f"There is no {device}: no NVIDIA driver answers; use --devices cpu.", param="devices"
        ) from None
    return _read_listing(listing.stdout, device)


def _read_listing(listing: str, device: str) -> int:
    """Free bytes of one GPU from lines of `index, MiB`."""
    free_mib = dict(line.split(", ") for line in listing.strip().splitlines())
    number = device.removeprefix("cuda:")
    if number not in free_mib:
        known = ", ".join(sorted(free_mib))
        raise InvalidInput(f"There is no GPU {number}; there are: {known}.", param="devices")
    return int(free_mib[number]) * _MIB
