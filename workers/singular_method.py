"""Methods that train only what stands between the leading singular vectors of a frozen weight.

    W + U_r diag(s_r) middle V_r^T      or without the singular values

The vectors are made once, when a job begins, and travel in the adapter's file: the same
decomposition on another machine may turn signs or mix equal singular values, and the trained middle
would then mean something else.

Shape suffixes: O out_features, I in_features, R rank.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, get_args

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from scheduler.domain.errors import InvalidInput
from workers.adapter_sites import Site, Target, sites
from workers.model import DecoderConfig
from workers.peft_method import Params, PeftMethod, SiteWeight, Terms, generator
from workers.term_grads import MIDDLE_ONLY, TermParts

OVERSAMPLING = 8
POWER_ITERATIONS = 4


class SingularMethod(PeftMethod):
    """A rank, projections, and their leading singular vectors, frozen."""

    class Config(PeftMethod.Config):
        """Options that all of them have."""

        rank: int = Field(16, ge=1, le=256, description="Leading singular vectors that are used.")
        target_modules: tuple[Target, ...] = Field(
            get_args(Target), min_length=1, description="Projections that get an adapter."
        )

    config: Config

    def __init__(self, config: Config, model: DecoderConfig) -> None:
        super().__init__(config, model)
        self.sites = list(sites(model, self.modules))

    @property
    def rank(self) -> int:
        """See PeftMethod."""
        return self.config.rank

    @property
    def modules(self) -> frozenset[str]:
        """See PeftMethod."""
        return frozenset(self.config.target_modules)

    @property
    def trained_parts(self) -> TermParts:
        """See PeftMethod."""
        return MIDDLE_ONLY

    @property
    def scale(self) -> float:
        """Factor on the middle."""
        return 1.0

    @abstractmethod
    def trained_name(self, site: Site) -> str:
        """Name of a site's trained tensor."""

    @abstractmethod
    def left(self, u_OR: Tensor, values_R: Tensor) -> Tensor:
        """What stands left of the middle, (O, R)."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See PeftMethod: a diagonal is a vector."""
        is_diagonal = self.middle == 1
        shape = (self.rank,) if is_diagonal else (self.rank, self.rank)
        return {self.trained_name(site): shape for site in self.sites}

    def fixed_shapes(self) -> dict[str, tuple[int, ...]]:
        """See PeftMethod."""
        shapes: dict[str, tuple[int, ...]] = {}
        for site in self.sites:
            outputs, inputs = site.shape
            shapes[f"{site.name}.lora_A.weight"] = (self.rank, inputs)
            shapes[f"{site.name}.lora_B.weight"] = (outputs, self.rank)
        return shapes

    def init(self, params: Params, seed: int) -> None:  # noqa: ARG002
        """A middle of zeros adds nothing, and its gradient is not zero."""
        for name in self.shapes():
            params[name].zero_()

    def make_fixed(self, params: Params, weight_of: SiteWeight) -> None:
        """Decompose the weight of every site.

        Raises:
            InvalidInput: a weight has fewer singular vectors than the rank.
        """
        for site in self.sites:
            weight = weight_of(site)
            if self.rank > min(weight.shape):
                raise InvalidInput(
                    f"{site.part.module} has {min(weight.shape)} singular vectors, fewer than "
                    f"rank {self.rank}.",
                    param="rank",
                )
            u, values, vh = leading_singular(weight, self.rank, generator(0, site.name))
            params[f"{site.name}.lora_A.weight"].copy_(vh)
            params[f"{site.name}.lora_B.weight"].copy_(self.left(u, values))

    def lower(self, params: Params, into: Terms) -> None:
        """See PeftMethod."""
        for site in self.sites:
            term, middle = into[site.key], params[self.trained_name(site)]
            site.shrink(term, self.rank).copy_(params[f"{site.name}.lora_A.weight"])
            term.expand_RO[site.place].copy_(params[f"{site.name}.lora_B.weight"].T)
            term.middle_RM[site.place].copy_((self.scale * middle).view(self.rank, -1))

    def pull_back(self, grads: Terms, into: Params) -> None:
        """See PeftMethod."""
        for site in self.sites:
            total, grad = grads[site.key].middle_RM[site.place], into[self.trained_name(site)]
            torch.mul(total.view_as(grad), self.scale, out=grad)

    def peft_config(self) -> dict[str, Any]:
        """See PeftMethod."""
        options = self.config.model_dump() | {"target_modules": sorted(self.config.target_modules)}
        return {"peft_type": self.peft_type, "task_type": "CAUSAL_LM", **options}

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: DecoderConfig) -> PeftMethod:
        """See PeftMethod."""
        names = cls.Config.model_fields
        try:
            options = cls.Config.model_validate({n: config[n] for n in names if n in config})
        except ValidationError as error:
            raise InvalidInput(f"adapter_config.json is wrong: {error}.") from None
        return cls(options, model)


def leading_singular(
    weight_OI: Tensor, rank: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """U (O, R), singular values (R,) and V^T (R, I) of the largest ones.

    Source: Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1.
    """
    width = min(rank + OVERSAMPLING, *weight_OI.shape)
    sketch = torch.randn(weight_OI.shape[1], width, generator=random).to(weight_OI)
    basis = torch.linalg.qr(weight_OI @ sketch).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(weight_OI.T @ basis).Q
        basis = torch.linalg.qr(weight_OI @ basis).Q
    u, values, vh = torch.linalg.svd(basis.T @ weight_OI, full_matrices=False)
    return basis @ u[:, :rank], values[:rank], vh[:rank]
