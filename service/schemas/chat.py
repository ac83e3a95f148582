"""POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from service.schemas.base import OpenBody, Read
from service.schemas.sampling import SamplingFields
from service.schemas.usage import UsageRead
from service.service_tier import ServedTier


class TextPart(OpenBody):
    """A piece of a message's content; text is the only kind these models read."""

    type: Literal["text"]
    text: str


def _check_content(content: Any) -> Any:
    """Refuse content that is not text, with one sentence instead of a union's several."""
    if content is None or isinstance(content, str):
        return content
    good = isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )
    if not good:
        raise PydanticCustomError(
            "content", 'Must be a string or a list of {{"type": "text", "text": ...}} parts'
        )
    return content


class ChatMessage(OpenBody):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[TextPart] | None, BeforeValidator(_check_content)] = None
    name: str | None = Field(None, max_length=256)
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatRequest(SamplingFields):
    """What to answer, and how. Fields unknown here are ignored unless they change the answer."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extension.")


class TopLogprob(Read):
    """A token that could have come instead."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token that came."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Read):
    """Log-probabilities of the answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(Read):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Read):
    """One of the `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Read):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageRead
    system_fingerprint: str | None = None
    service_tier: ServedTier
