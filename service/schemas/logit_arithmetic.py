"""Terms that are added to a model's logits; an option of both kinds of completion."""

from typing import Annotated

from pydantic import Field

from service.schemas.base import Body

MAX_TERMS = 3
MAX_BETA = 4.0

ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class LogitTerm(Body):
    """Adds `beta` (logits of `model` - logits of `reference`)."""

    model: ModelName = Field(description="A model of the same base: what is added.")
    reference: ModelName | None = Field(
        None, description="Another one: what it is compared with; left out: the bare base."
    )
    beta: float = Field(ge=-MAX_BETA, le=MAX_BETA, description="How much of the difference.")


LogitTerms = Annotated[list[LogitTerm], Field(min_length=1, max_length=MAX_TERMS)]
