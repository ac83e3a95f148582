"""Text completions: prompts of all four forms, echo, log-probabilities as parallel lists."""

from __future__ import annotations

import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scheduler.domain.errors import InvalidInput
from scheduler.text.detokenizer import Detokenizer
from service.choice import ScoredToken
from service.event_stream import DONE, event
from service.generation import Generation
from service.kv_policy import kv_policy_of
from service.sampling import (
    check_token_ids,
    count_of,
    fit_max_tokens,
    refuse_unsupported,
    request_body,
    sampling_params,
    stops_of,
)
from service.schemas.completion import Completion, CompletionChoice, CompletionLogprobs
from service.service_tier import class_of
from service.tokenizing import off_loop_when_long

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from scheduler.domain.messages import TokenLogprobs
    from scheduler.domain.request import KvPolicyChoice, RequestBody
    from scheduler.domain.tenant import Tenant
    from scheduler.text.tokenizer import ChatTokenizer
    from service.catalogue import ServedModel
    from service.generation import Engines, Update
    from service.rate_gate import RateGate
    from service.schemas.completion import CompletionRequest
    from service.settings import ServiceSettings

DEFAULT_MAX_TOKENS = 16


async def start_completion(
    body: CompletionRequest,
    served: ServedModel,
    tenant: Tenant,
    engines: Engines,
    settings: ServiceSettings,
    gate: RateGate,
) -> CompletionAnswer:
    """Check the request and prepare its answer; nothing is sent to a worker yet.

    Raises:
        InvalidInput: a field is wrong or not supported.
        UnknownPlugin: there is no such KV policy.
        ContextTooLong: a prompt does not fit the model.
    """
    refuse_unsupported(body.model_extra)
    if len(body.prompt) > settings.max_prompts:
        raise InvalidInput(f"Send at most {settings.max_prompts} prompts at once.", param="prompt")
    if body.max_tokens == 0 and not body.echo:
        raise InvalidInput("'max_tokens' of 0 needs 'echo': true.", param="max_tokens")
    n = count_of(body, settings)
    if body.best_of not in (None, n):
        raise InvalidInput("'best_of' must equal 'n' here; leave it out.", param="best_of")
    kv_policy = kv_policy_of(body.kv_policy, served.base_model, engines.pool.roster)
    requests = [
        await _request(body, prompt, served, tenant, n, kv_policy) for prompt in body.prompt
    ]
    generation = Generation(
        engines, served, requests, stops_of(body, settings), continues_text=True, gate=gate
    )
    return CompletionAnswer(body, generation)


async def _request(
    body: CompletionRequest,
    prompt: str | list[int],
    served: ServedModel,
    tenant: Tenant,
    n: int,
    kv_policy: KvPolicyChoice | None,
) -> RequestBody:
    tokenizer = served.tokenizer
    if isinstance(prompt, str):
        token_ids = await off_loop_when_long(len(prompt), lambda: tokenizer.encode(prompt))
    else:
        token_ids = prompt
        check_token_ids(token_ids, tokenizer.vocab_size, "prompt")
    sampling = sampling_params(
        body,
        tokenizer.vocab_size,
        max_tokens=fit_max_tokens(
            body.max_tokens, len(token_ids), served, default=DEFAULT_MAX_TOKENS, param="prompt"
        ),
        num_logprobs=body.logprobs,
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
    )
    service_class = class_of(body.service_tier, tenant)
    return request_body(
        tenant, served, token_ids, sampling, n, service_class, body.cache_salt, kv_policy
    )


@dataclass(slots=True)
class _Echo:
    """The prompt as part of the answer."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)


def _echo_of(
    tokenizer: ChatTokenizer,
    token_ids: Sequence[int],
    scores: Sequence[TokenLogprobs | None] | None,
) -> _Echo:
    """The prompt's text and its tokens with their offsets; `scores` may be missing."""
    detokenizer = Detokenizer(tokenizer)
    echo, parts, offset = _Echo(), [], 0
    for position, token_id in enumerate(token_ids):
        echo.tokens.append(ScoredToken(token_id, offset, scores[position] if scores else None))
        parts.append(detokenizer.push(token_id))
        offset += len(parts[-1])
    parts.append(detokenizer.flush())
    echo.text = "".join(parts)
    return echo


class CompletionAnswer:
    """The answer to one completion request, whole or as chunks."""

    def __init__(self, body: CompletionRequest, generation: Generation) -> None:
        self._body = body
        self._generation = generation
        self._tokenizer = generation.served.tokenizer
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._echoes: dict[int, _Echo] = {}

    async def whole(self) -> Completion:
        """Wait for all choices.

        Raises:
            DomainError: refused, or the worker failed.
        """
        texts: list[list[str]] = [[] for _ in self._generation.choices]
        tokens: list[list[ScoredToken]] = [[] for _ in self._generation.choices]
        async for update in self._generation.updates():
            texts[update.index].append(update.piece.text)
            tokens[update.index].extend(update.piece.tokens)
        return Completion(
            id=self._id,
            created=self._created,
            model=self._generation.served.name,
            choices=[
                self._choice(index, "".join(texts[index]), tokens[index])
                for index in range(len(texts))
            ],
            usage=self._generation.usage,
            system_fingerprint=self._generation.served.fingerprint,
            service_tier=self._generation.service_tier,
        )

    def _choice(self, index: int, text: str, tokens: list[ScoredToken]) -> CompletionChoice:
        finish = self._generation.choices[index].finish_reason
        assert finish is not None
        echo = self._echo(index)
        return CompletionChoice(
            index=index,
            text=echo.text + text,
            logprobs=self._logprobs(echo.tokens, tokens, len(echo.text)),
            finish_reason=finish,
        )

    def _echo(self, index: int) -> _Echo:
        if not self._body.echo:
            return _Echo()
        position = index // self._generation.bodies[0].n
        if position not in self._echoes:
            prompt = self._generation.bodies[position].prompt_token_ids
            scores = self._generation.prompt_scores.get(position)
            self._echoes[position] = _echo_of(self._tokenizer, prompt, scores)
        return self._echoes[position]

    def _logprobs(
        self, echoed: list[ScoredToken], generated: list[ScoredToken], num_echoed_chars: int
    ) -> CompletionLogprobs | None:
        if self._body.logprobs is None:
            return None
        tokens = [*echoed, *generated]
        offsets = [token.offset for token in echoed]
        offsets += [token.offset + num_echoed_chars for token in generated]
        return CompletionLogprobs(
            tokens=[self._tokenizer.token_text(token.token_id) for token in tokens],
            token_logprobs=[token.score.logprob if token.score else None for token in tokens],
            top_logprobs=[self._top(token) for token in tokens],
            text_offset=offsets,
        )

    def _top(self, token: ScoredToken) -> dict[str, float] | None:
        """The alternatives by their text, and the token itself, as OpenAI has it."""
        if token.score is None:
            return None
        best: dict[str, float] = {}
        for other, logprob in zip(token.score.top_ids, token.score.top_logprobs, strict=True):
            best.setdefault(self._tokenizer.token_text(other), logprob)
        best.setdefault(self._tokenizer.token_text(token.token_id), token.score.logprob)
        return best

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events, one chunk per token, closed by [DONE].

        Raises:
            DomainError: refused, or the worker failed.
        """
        begun: set[int] = set()
        async with aclosing(self._generation.updates()) as updates:
            async for update in updates:
                yield event(self._chunk(update, first=update.index not in begun))
                begun.add(update.index)
        if self._body.wants_usage:
            yield event(self._envelope([]) | {"usage": self._generation.usage})
        yield DONE

    def _chunk(self, update: Update, *, first: bool) -> dict[str, Any]:
        echo = self._echo(update.index) if self._body.echo else _Echo()
        text = echo.text + update.piece.text if first else update.piece.text
        choice = {
            "index": update.index,
            "text": text,
            "logprobs": self._logprobs(
                echo.tokens if first else [], list(update.piece.tokens), len(echo.text)
            ),
            "finish_reason": update.choice.finish_reason,
        }
        return self._envelope([choice])

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._generation.served.name,
            "system_fingerprint": self._generation.served.fingerprint,
            "service_tier": self._generation.service_tier,
            "choices": choices,
        }
        if self._body.wants_running_usage:
            chunk["usage"] = self._generation.usage
        elif self._body.wants_usage:
            chunk["usage"] = None
        return chunk
