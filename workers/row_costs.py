"""Measures, at start-up, what all base GEMMs take by number of rows.

Below some tens of rows a decoder is bound by reading its weights, so cost is no straight line;
libraries also switch kernels at odd row counts. The scheduler plans with the measured curve.
"""

from __future__ import annotations

import torch

from scheduler.policy.latency import RowCosts
from workers.lane_device import cpu_threads
from workers.model import DecoderWeights, LayerWeights
from workers.unit_clock import elapsed_ms

ROWS = {  # up to where a card, too, is bound by arithmetic
    "cpu": (1, 4, 8, 16, 24, 32, 48, 64, 128, 256),
    "cuda": (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
}
REPEATS = 2
ENOUGH_BYTES = 200 << 20  # layers measured: enough that no cache holds their weights


def measure_row_costs(weights: DecoderWeights, num_threads: int) -> RowCosts:
    """Milliseconds of every layer's linears on so many threads, for each of the device's ROWS."""
    with cpu_threads(num_threads):
        return _measure(weights)


def _measure(weights: DecoderWeights) -> RowCosts:
    layer_bytes = sum(linear.num_bytes for linear in weights.layers[0].linears)
    layers = weights.layers[: max(1, ENOUGH_BYTES // layer_bytes)]
    share = len(layers) / len(weights.layers)
    rows = ROWS[weights.device.type]
    _cost_ms(layers, rows[-1])  # starts the threads and picks the kernels
    costs: list[float] = []
    for place, count in enumerate(rows):
        cost_ms = _cost_ms(layers, count) / share
        if costs:  # n rows cost at most n / m times m rows; more is a noisy machine
            cost_ms = min(cost_ms, costs[-1] * count / rows[place - 1])
        costs.append(cost_ms)
    return RowCosts(rows, tuple(costs))


@torch.inference_mode()
def _cost_ms(layers: tuple[LayerWeights, ...], rows: int) -> float:
    like = layers[0].input_norm
    inputs = [like.new_ones(rows, linear.in_features) for linear in layers[0].linears]

    def run() -> None:
        for layer in layers:
            for x, linear in zip(inputs, layer.linears, strict=True):
                linear(x)

    return min(elapsed_ms(like.device, run) for _ in range(REPEATS))
