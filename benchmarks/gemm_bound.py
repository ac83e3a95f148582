"""How much sharing a step could gain if a step were nothing but its base GEMMs.

Decode rows leave the processor waiting for weights; training rows that ride along in the same GEMMs
ride for less than they cost alone. What a fused step saves that way bounds its co-serving
efficiency; attention, adapters and everything else only dilute it. With F and B the cheapest cost
of a training token forward and backward, G(r) the cost of r rows through all linears:

    separate  G(d) + w (F + B)        d decode rows, then w training tokens by themselves
    fused     G(d + w) + w B          the window rides along, its backward runs by itself
    eta       separate / fused

Under a TPOT target of f times inference alone, steps carry a window as often as keeps their mean
time at f times its own; each decode row also brings its share of a prompt, which costs the same
either way. The bound takes the best window, and never less than time slicing, which is 1. A second
way to share, two lanes of one thread each, is measured as it is: both rates beside each other
against alone with all threads.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers.prompts import OUTPUT_TOKENS, PROMPT_TOKENS
from benchmarks.spread import median
from workers.model import DecoderWeights

ROWS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)
WINDOWS = (16, 32, 64, 128, 256)
BACKWARD_ROWS = (256, 512)
REPEATS = 3
LANE_S = 0.6
PROMPT_PER_OUTPUT = sum(PROMPT_TOKENS) / sum(OUTPUT_TOKENS)


@dataclass(frozen=True, slots=True)
class GemmCosts:
    """Measured milliseconds of the base GEMMs of all layers.

    Attributes:
        rows, ms: forward, by number of rows, ascending.
        backward_ms: of one training token.
        head_ms: of one training token's logits and of their gradient.
    """

    rows: tuple[int, ...]
    ms: tuple[float, ...]
    backward_ms: float
    head_ms: float = 0.0

    def at(self, rows: float) -> float:
        """Forward cost, linear between measured counts and beyond the last."""
        right = min(max(bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        x0, x1 = self.rows[right - 1], self.rows[right]
        y0, y1 = self.ms[right - 1], self.ms[right]
        return y0 + (y1 - y0) * (rows - x0) / (x1 - x0)

    @property
    def forward_ms(self) -> float:
        """Of one training token alone, at the cheapest row count."""
        return min(ms / rows for rows, ms in zip(self.rows, self.ms, strict=True))

    @property
    def token_ms(self) -> float:
        """Of one training token alone, forward and backward."""
        return self.forward_ms + self.backward_ms + self.head_ms

    def window_eta(self, decode_rows: int, window: int) -> float:
        """Separate over fused cost of one step."""
        rest_ms = window * (self.backward_ms + self.head_ms)
        separate_ms = self.at(decode_rows) + window * self.token_ms
        return separate_ms / (self.at(decode_rows + window) + rest_ms)

    def bound(self, decode_rows: int, factor: float) -> float:
        """Eta of the best fused steps that last `factor` times as long as inference alone."""
        prefill_ms = decode_rows * PROMPT_PER_OUTPUT * self.forward_ms
        alone_ms = self.at(decode_rows) + prefill_ms
        gained_ms = max(
            self._gained_ms(decode_rows, window, (factor - 1) * alone_ms) for window in self.rows
        )
        return 1.0 + max(0.0, gained_ms) / (factor * alone_ms)

    def _gained_ms(self, decode_rows: int, window: int, spare_ms: float) -> float:
        """What riding along saves a step on average, where steps have `spare_ms` for training."""
        added_ms = self.at(decode_rows + window) - self.at(decode_rows)
        added_ms += window * (self.backward_ms + self.head_ms)
        share = min(1.0, spare_ms / added_ms)  # of the steps carry a window
        return share * (window * self.token_ms - added_ms)


@torch.inference_mode()
def measure_gemm_costs(weights: DecoderWeights) -> GemmCosts:
    """Time all layers' linears forward by row count, and backward over long ranges."""
    last = BACKWARD_ROWS[-1]
    return GemmCosts(
        rows=ROWS,
        ms=tuple(_median_ms(_forward_pass(weights, rows)) for rows in ROWS),
        backward_ms=min(_median_ms(_backward_pass(weights, n)) / n for n in BACKWARD_ROWS),
        head_ms=_median_ms(_head_pass(weights, last)) / last,
    )


def lanes_eta(weights: DecoderWeights, decode_rows: int, window: int = 256) -> float:
    """Rates of decode and training GEMMs in lanes of one thread each, against alone with all."""
    decode = _forward_pass(weights, decode_rows)
    train = _train_pass(weights, window)
    threads = torch.get_num_threads()
    alone = [_rate(decode, threads), _rate(train, threads)]
    beside = [0.0, 0.0]

    def lane(place: int, work: Callable[[], None]) -> None:
        beside[place] = _rate(work, 1)

    lanes = [threading.Thread(target=lane, args=pair) for pair in enumerate((decode, train))]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    return sum(b / a for a, b in zip(alone, beside, strict=True))


def gemm_figures(costs: list[GemmCosts], lanes: dict[int, float]) -> dict[str, object]:
    """Costs and gains by number of decode rows, medians over the measurements."""
    return {
        "forward_ms": {
            rows: median([cost.ms[place] for cost in costs]) for place, rows in enumerate(ROWS)
        },
        "backward_ms_per_token": median([cost.backward_ms for cost in costs]),
        "window_eta": {
            f"{decode} decode rows, window of {window}": median(
                [cost.window_eta(decode, window) for cost in costs]
            )
            for decode in lanes
            for window in WINDOWS
        },
        "lanes_eta": lanes,
    }


def _forward_pass(weights: DecoderWeights, rows: int) -> Callable[[], None]:
    inputs = [_ones(weights, rows, linear.in_features) for linear in weights.layers[0].linears]

    def run() -> None:
        for layer in weights.layers:
            for x, linear in zip(inputs, layer.linears, strict=True):
                linear(x)

    return run


def _backward_pass(weights: DecoderWeights, rows: int) -> Callable[[], None]:
    grads = [_ones(weights, rows, linear.out_features) for linear in weights.layers[0].linears]

    def run() -> None:
        for layer in weights.layers:
            for grad, linear in zip(grads, layer.linears, strict=True):
                linear.input_grad(grad)

    return run


def _head_pass(weights: DecoderWeights, rows: int) -> Callable[[], None]:
    head = weights.lm_head
    x, grad = _ones(weights, rows, head.in_features), _ones(weights, rows, head.out_features)

    def run() -> None:
        head(x)
        head.input_grad(grad)

    return run


def _train_pass(weights: DecoderWeights, rows: int) -> Callable[[], None]:
    forward, backward = _forward_pass(weights, rows), _backward_pass(weights, rows)

    def run() -> None:
        forward()
        backward()

    return run


def _ones(weights: DecoderWeights, rows: int, features: int) -> Tensor:
    return torch.ones(rows, features, dtype=weights.dtype, device=weights.device)


def _median_ms(work: Callable[[], None]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        work()
        times.append((time.perf_counter() - began_s) * 1e3)
    return median(times)


@torch.inference_mode()
def _rate(work: Callable[[], None], threads: int) -> float:
    """Passes a second of this Python thread, which gets so many OpenMP threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    work()
    began_s, passes = time.perf_counter(), 0
    while time.perf_counter() < began_s + LANE_S:
        work()
        passes += 1
    rate = passes / (time.perf_counter() - began_s)
    torch.set_num_threads(before)
    return rate
