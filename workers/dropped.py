"""DARE's dropping: random entries become zero, the others grow so that the mean stays.

Source: Yu et al. 2023, arXiv:2311.03099.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.peft_method import generator


def drop_mask(tensor: Tensor, density: float, seed: int, place: str, index: int) -> Tensor:
    """Ones with odds `density`: the same for the same seed, place and adapter."""
    odds = torch.full_like(tensor, density)
    return torch.bernoulli(odds, generator=generator(seed, "dare", place, index))


def dropped(tensors: list[Tensor], density: float, seed: int, place: str) -> list[Tensor]:
    """Each tensor with a mask of its own, over `density`."""
    return [
        tensor * drop_mask(tensor, density, seed, place, index) / density
        for index, tensor in enumerate(tensors)
    ]
