"""LoRA-XS: y += (alpha / r) * U_r diag(s_r) R V_r^T x, with R (r, r) trained and the rest frozen.

Source: Balazy et al. 2024, arXiv:2405.17604, section 3. There R starts as noise of size 1e-5, here
as zeros: a fresh adapter changes nothing.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from workers.adapter_sites import Site
from workers.peft_method import PEFT_METHODS
from workers.singular_method import SingularMethod


@PEFT_METHODS.register("lora_xs")
class LoraXs(SingularMethod):
    """An r x r matrix between the leading singular vectors of any of the seven projections."""

    class Config(SingularMethod.Config):
        """Options of LoRA-XS."""

        alpha: float = Field(16.0, gt=0, le=4096, description="The update is scaled by alpha / r.")

    peft_type = "LORA_XS"
    config: Config

    @property
    def middle(self) -> int:
        """See PeftMethod: a matrix."""
        return self.rank

    @property
    def scale(self) -> float:
        """See SingularMethod."""
        return self.config.alpha / self.rank

    def trained_name(self, site: Site) -> str:
        """See SingularMethod."""
        return f"{site.name}.lora_latent_mapping.weight"

    def left(self, u_OR: Tensor, values_R: Tensor) -> Tensor:
        """See SingularMethod: with the singular values."""
        return u_OR * values_R
