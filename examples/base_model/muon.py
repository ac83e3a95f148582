"""An optimizer for weight matrices: momentum whose matrices are made orthogonal."""

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Returns near-orthogonal matrices by a Newton-Schulz iteration over a stack."""
    tall = matrices.shape[1] > matrices.shape[2]
    wide: torch.Tensor = matrices.mT if tall else matrices
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    first, second, third = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = wide @ wide.mT
        wide = first * wide + (second * square + third * square @ square) @ wide
    return wide.mT if tall else wide


class Muon(torch.optim.Optimizer):
    """Muon in float32, which handles all matrices of one shape in one stack."""

    def __init__(self, weights: Iterable[torch.Tensor], rate: float, momentum: float = 0.95):
        """Groups the weights by their shapes.

        Args:
            weights: Weight matrices.
            rate: The root mean square of a step's change of a weight, times five.
            momentum: The decay of the mean gradient.
        """
        shapes: dict[torch.Size, list[torch.Tensor]] = {}
        for weight in weights:
            shapes.setdefault(weight.shape, []).append(weight)
        groups = [{"params": group} for group in shapes.values()]
        super().__init__(groups, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves each weight along its orthogonal momentum."""
        del closure
        for group in self.param_groups:
            weights = group["params"]
            gradients = torch.stack([weight.grad for weight in weights])
            state = self.state[weights[0]]
            mean = state.setdefault("mean", torch.zeros_like(gradients))
            mean.lerp_(gradients, 1 - group["momentum"])
            moved = orthogonal(gradients.lerp(mean, group["momentum"]))
            scale = 0.2 * max(moved.shape[1:]) ** 0.5 * group["lr"]
            torch._foreach_add_(weights, list(moved.unbind()), alpha=-scale)
