"""A packed forward on its way: issued to the device, its tokens not read yet.

The next step is planned from counts while it runs, and finds its tokens on the device
(`NewestDraw`). So stops lag one step: what was computed after one is never read.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.domain.plan import StepPlan
from scheduler.domain.request import Sequence
from workers.batch_builder import InferenceRow
from workers.drawn_tokens import SampledToken
from workers.model_runner import ForwardResult


@dataclass(frozen=True, slots=True)
class Flight:
    """One packed forward.

    Attributes:
        began_s: when it was issued, on the host's clock.
    """

    plan: StepPlan
    rows: list[InferenceRow]
    result: ForwardResult
    began_s: float

    @property
    def leads(self) -> list[Sequence]:
        """For whom tokens are drawn."""
        return [] if self.result.drawn is None else self.result.drawn.leads

    @property
    def needs_reading(self) -> bool:
        """Whether what follows cannot be decided before its tokens are known.

        That is so where training waits for them to leave, and where the next draw counts the tokens
        before it.
        """
        return bool(self.plan.windows or self.plan.units) or any(
            row.sequence.request.sampling.counts_tokens for row in self.rows
        )

    def reserve(self) -> None:
        """Let the sequences go on with tokens that stand for those drawn."""
        for row, lead in enumerate(self.leads):
            if lead.finish_reason is None:
                lead.append_unread(row)

    def read(self) -> list[SampledToken]:
        """The tokens of the leads, once they have come."""
        return [] if self.result.drawn is None else self.result.drawn.read()
