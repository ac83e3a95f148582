"""Our optimizers take the steps of torch's; the learning rate follows its table."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.lr_schedule import learning_rate
from workers.optimizers.adamw import AdamW

CONFIGS: list[dict[str, Any]] = [
    {},
    {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1},
    {"beta1": 0.0, "weight_decay": 0.01},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_ten_steps_of_adamw_are_those_of_torch(config: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(50, dtype=torch.float64, generator=generator)
    options = AdamW.Config.model_validate(config)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    optimizer, state = AdamW(options), AdamW(options).init_state(ours)
    reference = torch.optim.AdamW(
        [theirs],
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
    )

    for step in range(1, 11):
        lr = 0.1 / step
        grad = torch.randn(50, dtype=torch.float64, generator=generator)
        optimizer.step(ours, grad, state, lr, step)
        theirs.grad = grad.clone()
        reference.param_groups[0]["lr"] = lr
        reference.step()
        assert float((ours - theirs.detach()).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("schedule", "warmup_ratio", "rates"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("constant", 0.2, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("linear", 0.2, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", 0.0, [0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]),
        ("linear", 1.0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
    ],
)
def test_the_learning_rate_follows_its_table(
    schedule: str, warmup_ratio: float, rates: list[float]
) -> None:
    got = [learning_rate(2e-3, schedule, warmup_ratio, step, 10) for step in range(10)]

    assert got == pytest.approx([2e-3 * rate for rate in rates])


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup_ratio=st.floats(0, 1),
    total=st.integers(1, 500),
)
def test_no_step_learns_nothing_or_more_than_the_peak(
    schedule: str, warmup_ratio: float, total: int
) -> None:
    rates = [learning_rate(1.0, schedule, warmup_ratio, step, total) for step in range(total)]

    assert all(0 < rate <= 1 for rate in rates)
