"""Where the time of a step goes: its kernels by name and family, and what no kernel fills.

    kernels_ms   sum over the kernels of a profiled step
    gap_ms       what a step takes beyond that when nobody profiles it
    linears      each product by itself at so many rows, over the weights of all layers in turn

On a CPU there are operators in place of kernels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.decode import DecodeRunner
from benchmarks.gpu.kernel_work import (
    Work,
    decode_rows,
    family_of,
    forward_work,
    prompt_rows,
    training_work,
)
from benchmarks.gpu.prefill import PromptRunner
from benchmarks.gpu.random_model import random_decoder
from benchmarks.gpu.setting import Figures, Setting
from benchmarks.gpu.training_run import TrainingRun
from workers.activations import SaveLevel
from workers.decoder import Decoder
from workers.frozen_linear import FrozenLinear
from workers.model import fused_linears

MOST = 10  # kernels of a family that are named
FUNCTOR = re.compile(r"\w*(?:Functor|_kernel_cuda)\w*")


def measure(setting: Setting) -> Iterator[Figures]:
    """Decode steps, a prompt, and a training window forward and back, on the largest shape."""
    ceilings, tiny = Ceilings.of(setting), setting.is_tiny
    decoder = random_decoder(setting.largest, setting, 1)
    config = decoder.config
    yield {"model": setting.largest}
    batches = (1, 4) if tiny else (1, 64, 256)
    decode = DecodeRunner(decoder, setting, max(batches))
    for batch in batches:
        work = forward_work(config, setting, decode_rows(batch, decode.context, 1))
        figures = step_figures(setting, decode.step_of(batch, 1), work, ceilings)
        yield {f"decode, batch {batch}": figures}
    del decode
    tokens = 64 if tiny else 4096
    work = forward_work(config, setting, prompt_rows(tokens))
    prompt = PromptRunner(decoder, setting, tokens)
    yield {f"prompt of {tokens}": step_figures(setting, prompt.step, work, ceilings)}
    tokens = 64 if tiny else 2048
    train = TrainingRun(decoder, setting, SaveLevel.FULL, tokens)
    work = training_work(config, setting, tokens)
    yield {f"training on {tokens}": step_figures(setting, train.step, work, ceilings)}
    for rows in (1, 16) if tiny else (1, 64, 256, 4096):
        yield {f"linears, {rows} rows": linear_figures(setting, decoder, rows, ceilings)}


def step_figures(
    setting: Setting, step: Callable[[], object], work: dict[str, Work], ceilings: Ceilings
) -> Figures:
    """A step's time, and that of its kernels beside the least that each family's could take."""
    step_ms = setting.time_s(step) * 1e3
    times = kernel_times(setting, step)
    families: Figures = {}
    for family in sorted({family_of(name) for name in times}):
        own = {name: spent for name, spent in times.items() if family_of(name) == family}
        least = work.get(family)
        bound_ms = ceilings.seconds(least.num_bytes, least.flop) * 1e3 if least else None
        families[family] = {
            "ms": sum(ms for ms, _ in own.values()),
            "roofline_ms": bound_ms,
            "kernels": {
                name: {"ms": ms, "calls": calls} for name, (ms, calls) in islice(own.items(), MOST)
            },
        }
    total_ms = sum(ms for ms, _ in times.values())
    return {
        "step_ms": step_ms,
        "kernels_ms": total_ms,
        "gap_ms": step_ms - total_ms,
        "families": families,
    }


def kernel_times(setting: Setting, step: Callable[[], object]) -> dict[str, tuple[float, int]]:
    """Milliseconds and calls of each kernel of one step, the longest first."""
    is_card = setting.device.type == "cuda"
    activity = ProfilerActivity.CUDA if is_card else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        step()
        setting.synchronize()
    spent: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type.name == activity.name:
            own_us = event.time_range.elapsed_us() if is_card else event.self_cpu_time_total
            spent[short_name(event.name)].append(own_us / 1e3)
    sums = {name: (sum(times), len(times)) for name, times in spent.items()}
    return dict(sorted(sums.items(), key=lambda item: -item[1][0]))


def short_name(kernel: str) -> str:
    """A kernel's name without its namespaces and templates, but with what it applies."""
    base = re.split(r"[<(]", kernel.removeprefix("void "), maxsplit=1)[0]
    functor = FUNCTOR.search(kernel[len(base) :])
    name = base if base.startswith("aten::") else base.rsplit("::", 1)[-1]
    return f"{name} {functor.group()}" if functor else name


def linear_figures(
    setting: Setting, decoder: Decoder, rows: int, ceilings: Ceilings
) -> dict[str, Figures]:
    """Microseconds of each product of a layer, and of the vocabulary's."""
    layers = decoder.weights.layers
    alike = {
        linear.name: [layer.linears[index] for layer in layers]
        for index, linear in enumerate(fused_linears(decoder.config))
    } | {"vocabulary": [decoder.weights.lm_head]}
    return {name: product_figures(setting, same, rows, ceilings) for name, same in alike.items()}


@torch.inference_mode()
def product_figures(
    setting: Setting, linears: list[FrozenLinear], rows: int, ceilings: Ceilings
) -> Figures:
    """One of several linears of equal shape."""
    width = linears[0].in_features
    x = torch.randn(rows, width, device=setting.device).to(setting.dtype)

    def run() -> None:
        for linear in linears:
            linear(x)

    each_s = setting.time_s(run) / len(linears)
    moved = linears[0].num_bytes + (rows * (width + linears[0].out_features) * x.element_size())
    bound_s = ceilings.seconds(moved, 2 * rows * width * linears[0].out_features)
    return {"us": each_s * 1e6, "times_roofline": each_s / bound_s}
