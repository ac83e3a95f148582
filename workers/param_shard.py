"""How a method's parameters lie over the ranks of a group.

A parameter is cut in the dimension in which its shape for a rank's part of the model differs from
that for the whole model; where they are equal it lies whole on every rank, and its gradient there
is one summand of the sum over all ranks. Files always hold whole tensors, so they are the same
whatever the size of the group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.flat_params import FlatParams, named_views
from workers.group import Group
from workers.peft_method import Params, PeftMethod, SiteWeight


class ParamShard:
    """The parameters of one adapter.

    Attributes:
        whole: the method over the whole model.
        own: the same over this rank's part.
    """

    def __init__(self, whole: PeftMethod, own: PeftMethod, group: Group) -> None:
        self.whole = whole
        self.own = own
        self.group = group
        self._shapes, self._own_shapes = whole.shapes(), own.shapes()
        own_shapes = own.file_shapes()
        self._cuts = {n: _cut(shape, own_shapes[n]) for n, shape in whole.file_shapes().items()}

    def init(self, into: FlatParams, seed: int) -> None:
        """Fill this rank's part of fresh parameters: the numbers are those of the whole."""
        drawn = FlatParams(self._shapes, into.flat.dtype, into.flat.device)
        self.whole.init(drawn.views, seed)
        self._copy_part(drawn, into)

    def make_fixed(self, into: FlatParams, weight_of: SiteWeight) -> None:
        """Fill this rank's part of what is never trained, likewise.

        Raises:
            InvalidInput: the method cannot be used on this base model.
        """
        made = FlatParams(self.whole.fixed_shapes(), into.flat.dtype, into.flat.device)
        self.whole.make_fixed(made.views, weight_of)
        self._copy_part(made, into)

    def part(self, params: Params) -> Params:
        """This rank's part of whole parameters."""
        return {name: self._part(tensor, self._cuts[name]) for name, tensor in params.items()}

    def gathered(self, params: Params) -> Params:
        """Whole parameters from all parts, as copies on the CPU."""
        return {
            name: self._gathered(tensor, self._cuts[name]).detach().cpu().clone()
            for name, tensor in params.items()
        }

    def flat_part(self, flat: Tensor) -> Tensor:
        """This rank's part of a vector that is laid out as the whole trained parameters."""
        views = named_views(flat, self._shapes)
        return torch.cat([part.flatten() for part in self.part(views).values()])

    def gathered_flat(self, flat: Tensor) -> Tensor:
        """The whole vector from all parts, on the CPU."""
        views = named_views(flat, self._own_shapes)
        return torch.cat([whole.flatten() for whole in self.gathered(views).values()])

    def add_up(self, grads: Params) -> None:
        """Complete the gradients of what lies on every rank, in place."""
        if not self.group.is_alone:
            common = [grad for name, grad in grads.items() if self._cuts[name] is None]
            sums = self.group.sum(torch.cat([grad.flatten() for grad in common]))
            for grad, total in zip(common, sums.split([g.numel() for g in common]), strict=True):
                grad.copy_(total.view_as(grad))

    def norm(self, grads: FlatParams) -> float:
        """Euclidean norm of the whole gradient; what lies on every rank counts once."""
        if self.group.is_alone:
            return float(torch.linalg.vector_norm(grads.flat))
        squares = {name: grad.square().sum() for name, grad in grads.views.items()}
        cut = sum(s for name, s in squares.items() if self._cuts[name] is not None)
        common = sum(s for name, s in squares.items() if self._cuts[name] is None)
        total = self.group.sum(torch.as_tensor(cut, dtype=grads.flat.dtype)) + common
        return float(total**0.5)

    def _copy_part(self, whole: FlatParams, into: FlatParams) -> None:
        for name, part in self.part(whole.views).items():
            into.views[name].copy_(part)

    def _part(self, whole: Tensor, cut: int | None) -> Tensor:
        return whole if cut is None else self.group.shard.part(whole, cut)

    def _gathered(self, part: Tensor, cut: int | None) -> Tensor:
        return part if cut is None else self.group.gather(part, cut)


def _cut(whole: tuple[int, ...], own: tuple[int, ...]) -> int | None:
    """The dimension in which two shapes differ, if they do."""
    pairs = enumerate(zip(whole, own, strict=True))
    return next((dim for dim, (all_of_it, ours) in pairs if all_of_it != ours), None)
