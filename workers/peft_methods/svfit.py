"""SVFit: y += U_r diag(d) V_r^T x: what is added to the leading singular values is trained.

Source: Sun et al. 2024, arXiv:2409.05926.
"""

from __future__ import annotations

from torch import Tensor

from workers.adapter_sites import Site
from workers.peft_method import PEFT_METHODS
from workers.singular_method import SingularMethod


@PEFT_METHODS.register("svfit")
class Svfit(SingularMethod):
    """A diagonal between the leading singular vectors of any of the seven projections."""

    class Config(SingularMethod.Config):
        """Options of SVFit."""

    peft_type = "SVFIT"

    @property
    def middle(self) -> int:
        """See PeftMethod: a diagonal."""
        return 1

    def trained_name(self, site: Site) -> str:
        """See SingularMethod."""
        return f"{site.name}.svfit_delta"

    def left(self, u_OR: Tensor, values_R: Tensor) -> Tensor:  # noqa: ARG002
        """See SingularMethod: only the vectors."""
        return u_OR
