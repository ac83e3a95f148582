"""How the K/V of a request's prompt are compressed; an option of both kinds of completion."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from service.schemas.options import MAX_INT, OptionsBody


def _check_budget(budget: Any) -> Any:
    """Refuse what is neither a count nor a share, with one sentence instead of a union's two."""
    is_count = type(budget) is int and 1 <= budget <= MAX_INT
    is_share = type(budget) is float and 0 < budget <= 1
    if not (budget is None or is_count or is_share):
        raise PydanticCustomError(
            "budget",
            "Must be a number of tokens (an integer from 1 to {max_int}) or a share of the prompt "
            "(a number above 0.0, at most 1.0)",
            {"max_int": MAX_INT},
        )
    return budget


class KvPolicyFields(OptionsBody):
    """A KV policy, its budget, and further options that `/v1/capabilities` describes."""

    type: str = Field(
        min_length=1, max_length=64, description="Name of a policy; `none`: no compression."
    )
    budget: Annotated[
        int | float | None,
        BeforeValidator(_check_budget, json_schema_input_type=int | float | None),
    ] = Field(
        None,
        description="Tokens that a KV head keeps on average (an integer), or their share of the "
        "prompt (a number up to 1.0).",
    )
