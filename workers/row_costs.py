"""Measures, at start-up, what all base GEMMs take by number of rows.

Below some tens of rows a decoder is bound by reading its weights, so cost is no straight line;
libraries also switch kernels at odd row counts. The scheduler plans with the measured curve.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from scheduler.policy.latency import RowCosts
from workers.model import DecoderWeights

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
REPEATS = 3
MAX_MEASURE_S = 1.0


def measure_row_costs(weights: DecoderWeights) -> RowCosts:
    """Milliseconds of every layer's linears, for each of ROWS that fits the time allowed."""
    rows: list[int] = []
    costs: list[float] = []
    _cost_ms(weights, ROWS[-1])  # starts the threads and picks the kernels
    began_s = time.perf_counter()
    for count in ROWS:
        cost_ms = _cost_ms(weights, count)
        if rows:  # n rows cost at most n / m times m rows; more is a noisy machine
            cost_ms = min(cost_ms, costs[-1] * count / rows[-1])
        rows.append(count)
        costs.append(cost_ms)
        if time.perf_counter() - began_s > MAX_MEASURE_S:
            break
    return RowCosts(tuple(rows), tuple(costs))


@torch.inference_mode()
def _cost_ms(weights: DecoderWeights, rows: int) -> float:
    inputs = [weights.embedding.new_ones(rows, w.shape[1]) for w in weights.layers[0].linears]
    best_ms = float("inf")
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        for layer in weights.layers:
            for x, weight in zip(inputs, layer.linears, strict=True):
                F.linear(x, weight)
        _synchronize(weights.device)
        best_ms = min(best_ms, (time.perf_counter() - began_s) * 1e3)
    return best_ms


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
