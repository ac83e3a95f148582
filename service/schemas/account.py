"""/v1/tenant and /v1/usage: who the caller is, and what it has used."""

from typing import Literal

from pydantic import Field

from service.schemas.base import Read


class ModelUsageRead(Read):
    """Tokens of one tenant and model over some days."""

    object: Literal["usage"] = "usage"
    tenant_id: str
    tenant: str = Field(description="Name of the tenant.")
    model: str
    prompt_tokens: int
    output_tokens: int
    trained_tokens: int
