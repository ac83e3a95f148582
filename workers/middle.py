"""The middle of an adapter's term in plain torch: a diagonal (r, 1) or a matrix (r, r).

Shape suffixes: T rows, R rank columns, M numbers in a row of a middle (1 or r).
"""

from __future__ import annotations

from torch import Tensor


def through(shrunk_TR: Tensor, middle_RM: Tensor) -> Tensor:
    """Rows of rank columns, forward: shrunk @ middle.T."""
    if middle_RM.shape[1] == 1:
        return shrunk_TR * middle_RM.T
    return shrunk_TR @ middle_RM.T


def back_through(grad_TR: Tensor, middle_RM: Tensor) -> Tensor:
    """Their gradient, from that of what came out: grad @ middle."""
    if middle_RM.shape[1] == 1:
        return grad_TR * middle_RM.T
    return grad_TR @ middle_RM


def middle_grad(grad_TR: Tensor, shrunk_TR: Tensor, numbers: int) -> Tensor:
    """The middle's own gradient, (R, M): grad.T @ shrunk, of a diagonal only the diagonal."""
    if numbers == 1:
        return (grad_TR * shrunk_TR).sum(0)[:, None]
    return grad_TR.T @ shrunk_TR
