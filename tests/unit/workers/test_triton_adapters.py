"""Many adapters in one launch add what each row's own adapter adds, and give its gradients."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.workers.triton_device import DEVICE, DTYPE, assert_close, rand
from workers.kernels import reference
from workers.kernels.segments import Factor, RunTable, tile_places
from workers.kernels.triton.adapters import accumulate, contract, expand

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=4, deadline=None)
BIT = 3
NO_RUN = (0, 10**9)  # a tile past the end of every row


class Adapted:
    """A fused linear of projections 20, 7 and 1 wide, its arena, and runs of mixed ranks."""

    def __init__(self, seed: int, tile: int) -> None:
        random = Random(seed)
        self.widths, inputs, columns = (20, 7, 1), 70, 60
        self.shrink = rand(seed, 3 * columns, inputs)
        self.expands = [rand(seed + j + 1, columns, width) for j, width in enumerate(self.widths)]
        self.runs: list[tuple[int, int, int, int, int]] = []
        row, offset = random.randint(0, 2), 0
        for _ in range(random.randint(1, 4)):
            rank, stop = random.randint(1, 15), row + random.choice((0, 1, 20))
            targets = random.randint(0, 7)
            self.runs.append((row, stop, offset, rank, targets << BIT | 1))
            row, offset = stop + random.randint(0, 1), offset + rank
        self.rows = row + 1
        places = tile_places([r[0] for r in self.runs], [r[1] for r in self.runs], tile)
        self.tiles = RunTable(
            torch.tensor(self.runs, device=DEVICE),
            torch.tensor([*places, NO_RUN], device=DEVICE),
            tile,
            max(run[3] for run in self.runs),
        )
        bounds = [0, 20, 27, 28]
        self.shrink_factor = factor([self.shrink], [0, inputs], 3)
        self.expand_factor = factor(self.expands, bounds, 1)
        for _, _, column, rank, targets in self.runs:  # what is not targeted is zero in the arena
            for j in range(3):
                if not targets >> (BIT + j) & 1:
                    begin = 3 * column + j * rank
                    self.shrink[begin : begin + rank] = 0
                    self.expands[j][column : column + rank] = 0

    def term(self, run: tuple[int, int, int, int, int]) -> tuple[Tensor, Tensor]:
        _, _, column, rank, _ = run
        own = slice(column, column + rank)
        shrink = self.shrink[3 * column : 3 * (column + rank)]
        return shrink, torch.block_diag(*(matrix[own] for matrix in self.expands))


def factor(matrices: list[Tensor], bounds: list[int], stacked: int) -> Factor:
    return Factor(
        torch.tensor([m.data_ptr() for m in matrices], device=DEVICE),
        torch.tensor(bounds, dtype=torch.int32, device=DEVICE),
        stacked,
        max(m.shape[1] for m in matrices),
        BIT,
        False,
    )


@pytest.mark.parametrize("tile", [16, 64])
@FEW
@given(seed=SEEDS)
def test_forward_adds_each_row_s_own_adapter(tile: int, seed: int) -> None:
    adapted = Adapted(seed, tile)
    x, y = rand(seed + 7, adapted.rows, 70), rand(seed + 8, adapted.rows, 28)
    terms: list[tuple[Tensor, Tensor] | None] = [None] * adapted.rows
    for run in adapted.runs:
        terms[run[0] : run[1]] = [adapted.term(run)] * (run[1] - run[0])
    if any(term is not None for term in terms):
        want = y + reference.shrink_expand(x, terms)
    else:
        want = y.clone()

    expand(
        contract(x, adapted.shrink_factor, adapted.tiles), adapted.expand_factor, adapted.tiles, y
    )

    assert_close(y, want)


@pytest.mark.parametrize("tile", [16, 64])
@FEW
@given(seed=SEEDS)
def test_backward_gives_the_input_s_gradient_and_the_terms(tile: int, seed: int) -> None:
    adapted = Adapted(seed, tile)
    x, grad = rand(seed + 7, adapted.rows, 70), rand(seed + 8, adapted.rows, 28)
    grad_x = rand(seed + 9, adapted.rows, 70)
    want_x = grad_x.clone()

    shrunk = contract(x, adapted.shrink_factor, adapted.tiles)
    grad_shrunk = contract(grad, adapted.expand_factor, adapted.tiles)
    expand(grad_shrunk, adapted.shrink_factor, adapted.tiles, grad_x)

    for run in adapted.runs:
        start, stop, _, rank, targets = run
        rows = slice(start, stop)
        shrink, block = adapted.term(run)
        want_x[rows] += grad[rows] @ block.T @ shrink
        total = rand(seed, *shrink.shape)
        want = total + (grad[rows] @ block.T).T @ x[rows]
        accumulate(total, grad_shrunk.sum(0)[rows], 0, x[rows])
        assert_close(total, want)
        for j, (begin, width) in enumerate(zip((0, 20, 27), adapted.widths, strict=True)):
            if not targets >> (BIT + j) & 1:
                continue
            part = grad[rows, begin : begin + width]
            total = torch.zeros(rank, width, dtype=DTYPE, device=DEVICE)
            accumulate(total, shrunk.sum(0)[rows], j * rank, part)
            assert_close(total, (x[rows] @ shrink[j * rank : (j + 1) * rank].T).T @ part)
    assert_close(grad_x, want_x)
