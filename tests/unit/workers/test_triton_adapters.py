"""Adapters of every kind in one launch: what each row's own adds, and their gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.workers.triton_device import DEVICE, DTYPE, assert_close, rand
from workers.kernels import reference
from workers.kernels.reference import RowTerm
from workers.kernels.segments import (
    LARGEST_TILE,
    SMALLEST_TILE,
    Factor,
    LinearPlace,
    RunTable,
    tile_places,
    tile_rows,
)
from workers.kernels.triton.adapters import contract, expand
from workers.kernels.triton.gpu_kernels import AdaptedLinear, GpuKernels

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=4, deadline=None)
BIT, FIRST_MIDDLE = 3, 2
WIDTHS, INPUTS, COLUMNS = (20, 7, 1), 70, 60
NO_RUN = (0, 10**9)  # a tile past the end of every row


@dataclass
class OwnRun:
    """Rows with one adapter; its middles are of all projections before these three, too."""

    start: int
    stop: int
    column: int
    rank: int
    targets: int
    middles: Tensor | None

    @property
    def numbers(self) -> tuple[int, ...]:
        line = (self.start, self.stop, self.column, self.rank, self.targets)
        if self.middles is None:
            return *line, 0, 0
        return *line, self.middles.shape[2], self.middles.data_ptr()

    def middle(self, j: int) -> Tensor:
        """A projection's middle as a matrix."""
        if self.middles is None:
            return torch.eye(self.rank, dtype=DTYPE, device=DEVICE)
        middle = self.middles[FIRST_MIDDLE + j]
        return middle if middle.shape[1] == self.rank else middle[:, 0].diag()


class Adapted:
    """A fused linear of projections 20, 7 and 1 wide, its arena, and runs of mixed ranks."""

    def __init__(self, seed: int, tile: int, *, has_middles: bool = True) -> None:
        random = Random(seed)
        self.shrink = rand(seed, 3 * COLUMNS, INPUTS)
        self.expands = [rand(seed + j + 1, COLUMNS, width) for j, width in enumerate(WIDTHS)]
        self.runs: list[OwnRun] = []
        row, offset = random.randint(0, 2), 0
        for _ in range(random.randint(1, 4)):
            rank, stop = random.randint(1, 15), row + random.choice((0, 1, 20))
            width = random.choice((0, 1, rank)) if has_middles else 0
            middles = rand(seed + row, FIRST_MIDDLE + 3, rank, width) if width else None
            targets = random.randint(0, 7) << BIT | 1
            self.runs.append(OwnRun(row, stop, offset, rank, targets, middles))
            row, offset = stop + random.randint(0, 1), offset + rank
        self.rows = row + 1
        self.shrink_factor = factor([self.shrink], [0, INPUTS], 3)
        self.expand_factor = factor(self.expands, [0, 20, 27, 28], 1)
        self.tiles = table(self.runs, tile, has_middles)
        for run in self.runs:  # what is not targeted is zero in the arena
            for j in range(3):
                if not run.targets >> (BIT + j) & 1:
                    begin = 3 * run.column + j * run.rank
                    self.shrink[begin : begin + run.rank] = 0
                    self.expands[j][run.column : run.column + run.rank] = 0

    def term(self, run: OwnRun) -> RowTerm:
        own = slice(run.column, run.column + run.rank)
        return RowTerm(
            self.shrink[3 * run.column : 3 * own.stop],
            torch.block_diag(*(matrix[own] for matrix in self.expands)),
            torch.block_diag(*(run.middle(j) for j in range(3))),
        )


def table(runs: list[OwnRun], tile: int, has_middles: bool) -> RunTable:
    places = tile_places([r.start for r in runs], [r.stop for r in runs], tile)
    return RunTable(
        torch.tensor([run.numbers for run in runs], device=DEVICE),
        torch.tensor([*places, NO_RUN], device=DEVICE),
        tile,
        max(run.rank for run in runs),
        has_middles,
    )


def factor(matrices: list[Tensor], bounds: list[int], stacked: int) -> Factor:
    return Factor(
        torch.tensor([m.data_ptr() for m in matrices], device=DEVICE),
        torch.tensor(bounds, dtype=torch.int32, device=DEVICE),
        stacked,
        max(m.shape[1] for m in matrices),
        LinearPlace(BIT, FIRST_MIDDLE),
        False,
    )


@pytest.mark.parametrize("tile", [16, 64])
@pytest.mark.parametrize("has_middles", [False, True])
@FEW
@given(seed=SEEDS)
def test_forward_adds_each_row_s_own_adapter(has_middles: bool, tile: int, seed: int) -> None:
    adapted = Adapted(seed, tile, has_middles=has_middles)
    x, y = rand(seed + 7, adapted.rows, 70), rand(seed + 8, adapted.rows, 28)
    terms: list[RowTerm | None] = [None] * adapted.rows
    for run in adapted.runs:
        terms[run.start : run.stop] = [adapted.term(run)] * (run.stop - run.start)
    if any(term is not None for term in terms):
        want = y + reference.shrink_expand(x, terms)
    else:
        want = y.clone()

    add(adapted, adapted.tiles, x, y)

    assert_close(y, want)


@pytest.mark.parametrize("tile", [16, 64])
@FEW
@given(seed=SEEDS)
def test_backward_gives_the_gradients_of_autograd(tile: int, seed: int) -> None:
    adapted = Adapted(seed, tile)
    kernels, linear = GpuKernels(), AdaptedLinear(adapted.shrink_factor, adapted.expand_factor)
    for run in adapted.runs:
        count = run.stop - run.start
        if count == 0:
            continue
        alone = replace(run, start=0, stop=count)
        x, grad, grad_x = (
            rand(seed + 7, count, INPUTS),
            rand(seed + 8, count, 28),
            rand(9, count, INPUTS),
        )
        leaves = Leaves(adapted, run, x)
        totals = [rand(seed, *leaf.shape) for leaf in leaves.term]
        want_x, *want = leaves.gradients(grad)
        want_x += grad_x
        expected = [total + own for total, own in zip(totals, want, strict=True)]

        kernels.adapter_backward(
            linear, table([alone], tile, run.middles is not None), x, grad, tuple(totals), grad_x
        )

        assert_close(grad_x, want_x)
        for mine, theirs in zip(totals, expected, strict=True):
            assert_close(mine, theirs)


class Leaves:
    """The parts of one adapter's term, which autograd follows; those it lacks have no gradient."""

    def __init__(self, adapted: Adapted, run: OwnRun, x: Tensor) -> None:
        own = slice(run.column, run.column + run.rank)
        shrink = adapted.shrink[3 * run.column : 3 * own.stop]
        middles = [] if run.middles is None else list(run.middles[FIRST_MIDDLE:])
        parts = (shrink, *(matrix[own] for matrix in adapted.expands), *middles)
        self.run, self.x = run, x.clone().requires_grad_()
        self.term = [part.clone().requires_grad_() for part in parts]

    def gradients(self, grad: Tensor) -> list[Tensor]:
        """Of the input, of shrink, and of the expands and middles of every projection."""
        shrink, *others = self.term
        outs = []
        for j, block in enumerate((self.x @ shrink.T).split(self.run.rank, dim=1)):
            through = block
            if self.run.middles is not None:
                middle = others[3 + j]
                is_diagonal = middle.shape[1] == 1
                through = block * middle.T if is_diagonal else block @ middle.T
            outs.append(through @ others[j] * (self.run.targets >> (BIT + j) & 1))
        grads = torch.autograd.grad(
            torch.cat(outs, dim=1), [self.x, *self.term], grad, allow_unused=True
        )
        return [torch.zeros(()) if g is None else g for g in grads]


@FEW
@given(seed=SEEDS)
def test_a_batch_gives_the_same_bits_as_its_runs_alone(seed: int) -> None:
    adapted = Adapted(seed, 16)
    x, together = rand(seed + 7, adapted.rows, INPUTS), rand(seed + 8, adapted.rows, 28)
    alone = together.clone()

    add(adapted, adapted.tiles, x, together)
    for run in adapted.runs:
        add(adapted, table([run], 16, run.middles is not None), x, alone)

    assert torch.equal(together, alone)


def add(adapted: Adapted, tiles: RunTable, x: Tensor, y: Tensor) -> None:
    expand(contract(x, adapted.shrink_factor, tiles), adapted.expand_factor, tiles, y)


def test_long_runs_take_large_tiles_while_their_rank_leaves_room() -> None:
    assert tile_rows([512, 3], rank=128) == LARGEST_TILE
    assert tile_rows([512, 3], rank=256) == SMALLEST_TILE
    assert tile_rows([1, 3], rank=16) == SMALLEST_TILE
