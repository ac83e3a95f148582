"""POST /v1/completions."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from service.schemas.base import Read
from service.schemas.sampling import SamplingFields
from service.schemas.usage import UsageRead
from service.service_tier import ServedTier


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _as_prompts(prompt: Any) -> Any:
    """One prompt or several, each a string or token ids -> a list of prompts."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if _is_tokens(prompt):
            return [prompt]
        if all(isinstance(item, str) for item in prompt):
            return prompt
        if all(_is_tokens(item) and item for item in prompt):
            return prompt
    raise PydanticCustomError(
        "prompt",
        "Must be a string, a list of strings, a list of token ids, or a list of such lists",
    )


class CompletionRequest(SamplingFields):
    """What to continue, and how. Fields unknown here are ignored unless they change the answer."""

    prompt: Annotated[
        list[str | list[int]],
        BeforeValidator(
            _as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ]
    echo: bool | None = Field(None, description="Send the prompt back before the answer.")
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1)


class CompletionLogprobs(Read):
    """Log-probabilities of the text's tokens, as parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Read):
    """One of the answers; those of prompt k come before those of prompt k + 1."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Read):
    """A whole answer."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageRead
    system_fingerprint: str | None = None
    service_tier: ServedTier
