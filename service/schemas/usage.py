"""Token counts of one answer."""

from pydantic import Field

from service.schemas.base import Read


class PromptTokensDetails(Read):
    """Where prompt tokens came from."""

    cached_tokens: int = Field(
        0, description="Found in the tenant's prefix cache, and not computed again."
    )


class KvTokens(Read):
    """What a KV policy has left of what it compressed: tokens of a KV head, on average."""

    kept: int
    dropped: int


class UsageRead(Read):
    """Tokens that went in and came out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    kv_tokens: KvTokens | None = Field(
        None,
        exclude_if=lambda tokens: tokens is None,
        description="Tokens that the KV policy kept and dropped: the prompt's, and those of the "
        "answer up to its last compression; absent without one.",
    )
