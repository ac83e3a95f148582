"""Request fields -> SamplingParams, with the limits that depend on the model and the operator."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from scheduler.domain.errors import ContextTooLong, InvalidInput
from scheduler.domain.request import RequestBody, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.domain.request import KvPolicyChoice
    from scheduler.domain.tenant import Tenant
    from service.catalogue import ServedModel
    from service.schemas.sampling import SamplingFields
    from service.settings import ServiceSettings

MIN_TOP_P = 1e-6  # OpenAI takes 0; it means "the best token only"

# Fields that would change the answer, and the values that ask for nothing special.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "audio": (),
    "functions": ([],),
    "function_call": ("none",),
    "web_search_options": (),
    "modalities": (["text"], []),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "suffix": ("",),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "bad_words": ([],),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "prompt_embeds": (),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "truncate_prompt_tokens": (),
    "include_stop_str_in_output": (False,),
    "return_token_ids": (False,),
}


def refuse_unsupported(extras: Mapping[str, Any] | None) -> None:
    """Refuse fields that ask for something this service cannot do; others are ignored.

    Raises:
        InvalidInput: `param` names the field.
    """
    for name, value in (extras or {}).items():
        if name in _UNSUPPORTED and value is not None and value not in _UNSUPPORTED[name]:
            raise InvalidInput(
                f"{name!r} with this value is not supported here; leave it out.", param=name
            )


def stops_of(fields: SamplingFields, settings: ServiceSettings) -> list[str]:
    """The stop strings.

    Raises:
        InvalidInput: too many, or one too long.
    """
    stops = fields.stop or []
    if len(stops) > settings.max_stops:
        raise InvalidInput(
            f"{len(stops)} stop strings are too many; send at most {settings.max_stops}.",
            param="stop",
        )
    if any(len(stop) > settings.max_stop_chars for stop in stops):
        raise InvalidInput(
            f"A stop string may have at most {settings.max_stop_chars} characters.", param="stop"
        )
    return stops


def count_of(fields: SamplingFields, settings: ServiceSettings) -> int:
    """How many answers per prompt.

    Raises:
        InvalidInput: more than the operator allows.
    """
    n = fields.n or 1
    if n > settings.max_n:
        raise InvalidInput(f"'n' may be at most {settings.max_n} here.", param="n")
    return n


def fit_max_tokens(
    wanted: int | None,
    num_prompt_tokens: int,
    served: ServedModel,
    *,
    default: int | None,
    param: str,
) -> int:
    """How many tokens may be generated.

    Args:
        wanted: what the caller asked for.
        num_prompt_tokens: length of the prompt.
        served: the model.
        default: used without `wanted`; None means whatever still fits.
        param: field that holds the prompt.

    Raises:
        ContextTooLong: prompt and answer do not fit the model's context.
    """
    room = served.max_model_len - num_prompt_tokens
    if room < 0 or (room == 0 and wanted != 0):
        raise ContextTooLong(
            f"The prompt has {num_prompt_tokens} tokens, but the context of {served.name!r} is "
            f"{served.max_model_len} tokens, prompt and answer together; shorten the prompt.",
            param=param,
        )
    if wanted is None:
        return room if default is None else min(default, room)
    if wanted > room:
        raise ContextTooLong(
            f"{num_prompt_tokens} prompt tokens and {wanted} to generate do not fit the context of "
            f"{served.max_model_len} tokens; ask for at most {room}.",
            param=param,
        )
    return wanted


def longest_answer(tenant: Tenant, num_prompt_tokens: int, n: int) -> int | None:
    """How long an answer may become whose caller does not say; None: as long as the model allows.

    More than its tokens a minute could never be reserved for the tenant.
    """
    if tenant.tokens_per_minute is None:
        return None
    return max((tenant.tokens_per_minute - num_prompt_tokens) // n, 1)


def sampling_params(
    fields: SamplingFields,
    vocab_size: int,
    *,
    max_tokens: int,
    num_logprobs: int | None,
    prompt_logprobs: bool = False,
) -> SamplingParams:
    """The engine's view of the sampling fields.

    Raises:
        InvalidInput: a token id is beyond the vocabulary.
    """
    bias = {int(token): weight for token, weight in (fields.logit_bias or {}).items()}
    check_token_ids(list(bias), vocab_size, "logit_bias")
    check_token_ids(fields.stop_token_ids or [], vocab_size, "stop_token_ids")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if fields.temperature is None else fields.temperature,
        top_p=1.0 if fields.top_p is None else max(fields.top_p, MIN_TOP_P),
        top_k=max(fields.top_k or 0, 0),
        min_p=fields.min_p or 0.0,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        repetition_penalty=fields.repetition_penalty or 1.0,
        logit_bias=bias,
        seed=fields.seed,
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
        num_logprobs=num_logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def check_token_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Refuse ids that are no tokens of the model.

    Raises:
        InvalidInput: the first bad id.
    """
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        bad = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise InvalidInput(
            f"{param!r}: {bad} is no token id; ids go from 0 to {vocab_size - 1}.", param=param
        )


def request_body(
    tenant: Tenant,
    served: ServedModel,
    token_ids: Sequence[int],
    sampling: SamplingParams,
    n: int,
    service_class: str,
    cache_salt: str | None,
    kv_policy: KvPolicyChoice | None,
) -> RequestBody:
    """One prompt as it travels to a worker.

    Raises:
        InvalidInput: the prompt is empty.
    """
    if not token_ids:
        raise InvalidInput("The prompt has no tokens; send at least one.", param="prompt")
    return RequestBody(
        request_id=uuid.uuid4().hex,
        tenant_id=tenant.id,
        base_model=served.base_model,
        adapter=served.adapter,
        mixture=served.mixture,
        prompt_token_ids=tuple(token_ids),
        sampling=sampling,
        n=n,
        tenant_weight=tenant.weight,
        service_class=service_class,
        cache_salt=cache_salt or "",
        kv_policy=kv_policy,
    )
