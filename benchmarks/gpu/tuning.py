"""Other constants for the Triton kernels, one at a time, at the shapes of one layer of an 8B model.

Nothing of the product changes: the figures say what the best value of each would have taken beside
the present one. Values that a kernel cannot be compiled with, or has no room for, are None.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from triton.errors import TritonError

from benchmarks.gpu.attention_checks import backward, filled_pack
from benchmarks.gpu.attention_peers import Spans, random_heads, spans_attention
from benchmarks.gpu.kernel_checks import adapter_checks, row_checks
from benchmarks.gpu.knobs import Constant, Knob, LaunchOption
from benchmarks.gpu.random_model import random_decoder
from benchmarks.gpu.setting import Figures, Setting
from workers.batch import TrainWindow
from workers.decoder import Decoder

TILES = "workers.kernels.span_tiles"
TRITON = "workers.kernels.triton"
WARPS, STAGES = (2, 4, 8), (2, 3, 4)
Work = Callable[[], object]  # one launch, or what belongs to it
Sweep = tuple[Callable[[], Work], tuple[Knob, ...]]  # made anew for each value, since tiles are cut

SPLITS: tuple[Knob, ...] = (
    Constant(TILES, "KEYS_PER_SPLIT", (128, 256, 512)),
    Constant(TILES, "ENOUGH_PROGRAMS", (132, 264, 528)),
)
DECODE: tuple[Knob, ...] = (
    *SPLITS,
    Constant(TILES, "BLOCK_KEYS", (32, 64, 128)),
    LaunchOption("_attend", "num_warps", WARPS),
    LaunchOption("_attend", "num_stages", STAGES),
)
CHUNK: tuple[Knob, ...] = (
    Constant(TILES, "LARGEST_TILE", (64, 128)),
    Constant(TILES, "BLOCK_KEYS", (32, 64, 128)),
    LaunchOption("_attend", "num_warps", (4, 8)),
    LaunchOption("_attend", "num_stages", STAGES),
)
BACKWARD: tuple[Knob, ...] = (
    Constant(TILES, "GRAD_KEYS", (64, 128)),
    LaunchOption("_grad_keys", "num_warps", (4, 8)),
    LaunchOption("_grad_keys", "num_stages", STAGES),
    LaunchOption("_grad_queries", "num_warps", (4, 8)),
    LaunchOption("_grad_queries", "num_stages", STAGES),
)
ADAPTERS: tuple[Knob, ...] = (
    Constant(f"{TRITON}.adapters", "BLOCK_FEATURES", (32, 64, 128)),
    Constant(f"{TRITON}.adapters", "BLOCK_OUTPUTS", (64, 128, 256)),
    Constant(f"{TRITON}.adapters", "FEATURES_PER_SPLIT", (256, 512, 1024)),
    LaunchOption("_contract", "num_warps", WARPS),
    LaunchOption("_expand", "num_warps", WARPS),
)
ROWS: dict[str, tuple[Knob, ...]] = {
    "heads": (Constant(f"{TRITON}.qkv", "NUMBERS_PER_WARP", (128, 256, 512)),),
    "rms_norm": (Constant(f"{TRITON}.norm", "VALUES_PER_WARP", (256, 512, 1024)),),
    "silu_mul": (Constant(f"{TRITON}.gate", "BLOCK", (512, 1024, 2048)),),
}
SWEEP_S = 19.0
EACH_S = 0.03  # a value is timed for so long


@torch.inference_mode()
def measure(setting: Setting) -> Iterator[Figures]:
    """The present value of every knob beside the best one, by what it was tried on."""
    until_s = time.perf_counter() + SWEEP_S
    decoder = random_decoder("tiny" if setting.is_tiny else "8b-layer", setting, 4)
    for name, (make, knobs) in sweeps(setting, decoder).items():
        present_us = timed_us(setting, make)
        tried: Figures = {}
        for knob in knobs:
            if time.perf_counter() < until_s:
                tried[knob.label] = tried_us(setting, make, knob)
        yield {name: {"present_us": present_us, "best": best(present_us, tried), "us": tried}}


def sweeps(setting: Setting, decoder: Decoder) -> dict[str, Sweep]:
    """What is timed, by name, and the knobs that bear on it."""
    tiny = setting.is_tiny
    checks = row_checks(setting, decoder) | adapter_checks(setting, decoder)
    attends = partial(spans_attention, setting, decoder)
    decode = Spans("decode, 3 x 40", 3, 1, 40) if tiny else Spans("decode, 64 x 2k", 64, 1, 2048)
    long = Spans("decode, 1 x 80", 1, 1, 80) if tiny else Spans("decode, 1 x 64k", 1, 1, 65_536)
    chunk = Spans("chunk", 1, 10, 40) if tiny else Spans("chunk, 2k of 16k", 1, 2048, 16_384)
    found: dict[str, Sweep] = {
        decode.name: (lambda: attends(decode).ours, DECODE),
        chunk.name: (lambda: attends(chunk).ours, CHUNK),
        "training, forward and back": (partial(training, setting, decoder), BACKWARD),
        long.name: (lambda: attends(long).ours, SPLITS),
    }
    knobs = {name: ADAPTERS for name in checks if name.startswith("adapters qkv")} | ROWS
    return found | {name: (partial(checks.__getitem__, name), own) for name, own in knobs.items()}


def training(setting: Setting, decoder: Decoder) -> Work:
    """Attention of one example forward and back."""
    tokens, config = 48 if setting.is_tiny else 4096, decoder.config
    pack = filled_pack(setting, decoder, tokens, num_examples=1)
    window = TrainWindow(pack, 0, tokens, 0, pack.layers)
    q, grad = (random_heads(setting, tokens, config.num_heads, config.head_dim) for _ in range(2))
    return lambda: backward(window, decoder, q, grad)


def tried_us(setting: Setting, make: Callable[[], Work], knob: Knob) -> dict[str, float | None]:
    """Microseconds at each value of a knob."""
    took: dict[str, float | None] = {}
    for value in knob.values:
        with knob.set_to(value):
            took[str(value)] = timed_us(setting, make)
    return took


def timed_us(setting: Setting, make: Callable[[], Work]) -> float | None:
    """Microseconds of the work as it is made now; None where it cannot be run."""
    try:
        return setting.time_s(make(), warm=2, seconds=EACH_S) * 1e6
    except TritonError:
        return None


def best(present_us: float | None, tried: Figures) -> dict[str, object]:
    """The value that was fastest, as a share of the present time."""
    flat = [
        (us, f"{label} {value}")
        for label, by_value in tried.items()
        for value, us in by_value.items()  # type: ignore[attr-defined]
        if us is not None
    ]
    if not flat or present_us is None:
        return {}
    us, name = min(flat)
    return {"value": name, "share_of_present": us / present_us}
