"""The sampling fields that chat and text completions share, with their ranges."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from service.schemas.base import OpenBody
from service.schemas.kv_policy import KvPolicyFields
from service.schemas.logit_arithmetic import LogitTerms
from service.schemas.options import MAX_INT
from service.service_tier import AskedTier

MAX_ID_DIGITS = 10  # of a token id; Python itself refuses to read thousands


def _check_stop(stop: Any) -> Any:
    """Refuse anything but a string or strings, with one sentence instead of a union's two."""
    strings = [stop] if isinstance(stop, str) else stop
    if strings is None:
        return None
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise PydanticCustomError("stop", "Must be a string or a list of strings")
    if not all(strings):
        raise PydanticCustomError("stop", "A stop string must not be empty")
    return strings


def _check_bias(bias: Any) -> Any:
    if bias is None:
        return None
    good = isinstance(bias, dict) and all(
        str(token).isdecimal()
        and len(str(token)) <= MAX_ID_DIGITS
        and isinstance(weight, int | float)
        and not isinstance(weight, bool)
        and -100 <= weight <= 100
        for token, weight in bias.items()
    )
    if not good:
        raise PydanticCustomError("logit_bias", "Must map token ids to numbers from -100 to 100")
    return bias


class StreamOptions(OpenBody):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(
        None, description="Send token counts in one last chunk before [DONE]."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="Send token counts so far with every chunk (vLLM's extension)."
    )


class SamplingFields(OpenBody):
    """How tokens are drawn, in OpenAI's words and (below) vLLM's."""

    model: str | None = Field(None, min_length=1, max_length=512, description="Name of a model.")
    stream: bool | None = Field(None, description="Send tokens as server-sent events.")
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=0, description="Most tokens to generate.")
    n: int | None = Field(None, ge=1, le=128, description="Answers per prompt.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_check_bias)] = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Annotated[
        list[str] | None,
        BeforeValidator(_check_stop, json_schema_input_type=str | list[str] | None),
    ] = None
    service_tier: AskedTier | None = Field(
        None, description="`flex`: best effort, without latency targets; else the tenant's class."
    )
    top_k: int | None = Field(
        None, ge=-1, le=MAX_INT, description="Extension; 0 or -1 keeps all tokens."
    )
    min_p: float | None = Field(None, ge=0, le=1, description="Extension.")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="Extension.")
    stop_token_ids: list[int] | None = Field(None, max_length=64, description="Extension.")
    ignore_eos: bool | None = Field(None, description="Extension; generate beyond the end token.")
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Extension; only your requests with the same one share cached prompts.",
    )
    logit_arithmetic: LogitTerms | None = Field(
        None, description="Extension; terms that are added to the logits of `model`."
    )

    kv_policy: KvPolicyFields | None = Field(
        None, description="Extension; compresses the prompt's K/V once it is computed."
    )

    @property
    def wants_usage(self) -> bool:
        """Whether a streamed answer ends with token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        """Whether every chunk carries token counts."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)
