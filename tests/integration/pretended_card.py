"""An engine on this CPU that goes a card's ways: Triton's kernels, captured steps, late reading.

Kernels are interpreted, and a captured step runs again where a graph would be replayed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from workers import cpu_attention
from workers.cpu_backward import CpuBackward
from workers.cpu_decoder import CpuDecoder
from workers.kernels.device_kernels import KERNELS, gpu_kernels
from workers.padded_step import PaddedStep
from workers.step_graphs import CapturedStep, StepGraphs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from workers.decoder import Decoder
    from workers.kv_cache import KVCache
    from workers.newest_draw import NewestDraw
    from workers.padded_step import StepInputs, StepOutputs


def run_again(inputs: StepInputs, run: Callable[[], StepOutputs]) -> CapturedStep:
    """In place of a graph: outputs that every replay writes over."""
    outputs = run()

    def replay() -> None:
        again = run()
        outputs.logits_BV.copy_(again.logits_BV)
        for old, new in zip(outputs.queries, again.queries, strict=True):
            old.copy_(new)

    return CapturedStep(inputs, outputs, replay)


def graphs(decoder: Decoder, cache: KVCache, newest_draw: NewestDraw) -> StepGraphs:
    """Steps that are captured without a card."""
    return StepGraphs(PaddedStep(decoder, cache, newest_draw), run_again)


@pytest.fixture
def pretended_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines that start within run as on a card; on one thread: the interpreter knows no more."""
    monkeypatch.setitem(KERNELS, "cpu", gpu_kernels)
    monkeypatch.setattr(StepGraphs, "try_of", graphs)
    for kind in (CpuDecoder, CpuBackward):
        monkeypatch.setattr(kind, "try_of", lambda *_: None)
    monkeypatch.setattr(cpu_attention, "supported", lambda *_: None)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
