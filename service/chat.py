"""Chat completions: messages to a prompt, tokens to OpenAI's objects and chunks."""

from __future__ import annotations

import time
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from scheduler.domain.errors import InvalidInput
from service.event_stream import DONE, event
from service.generation import Generation
from service.kv_policy import kv_policy_of
from service.sampling import (
    count_of,
    fit_max_tokens,
    longest_answer,
    refuse_unsupported,
    request_body,
    sampling_params,
    stops_of,
)
from service.schemas.chat import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    TokenLogprob,
    TopLogprob,
)
from service.service_tier import class_of
from service.tokenizing import off_loop_when_long

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from scheduler.domain.tenant import Tenant
    from scheduler.text.tokenizer import ChatTokenizer
    from service.catalogue import ServedModel
    from service.choice import Choice, ScoredToken
    from service.generation import Engines, Update
    from service.rate_gate import RateGate
    from service.schemas.chat import ChatMessage, ChatRequest
    from service.settings import ServiceSettings


async def start_chat(
    body: ChatRequest,
    served: ServedModel,
    tenant: Tenant,
    engines: Engines,
    settings: ServiceSettings,
    gate: RateGate,
) -> ChatAnswer:
    """Check the request and prepare its answer; nothing is sent to a worker yet.

    Raises:
        InvalidInput: a field is wrong or not supported.
        UnknownPlugin: there is no such KV policy.
        ContextTooLong: the conversation does not fit the model.
    """
    refuse_unsupported(body.model_extra)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidInput("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    token_ids = await _encode(body, served.tokenizer)
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if wanted == 0:
        raise InvalidInput("A chat answer needs at least one token.", param="max_completion_tokens")
    n = count_of(body, settings)
    sampling = sampling_params(
        body,
        served.tokenizer.vocab_size,
        max_tokens=fit_max_tokens(
            wanted,
            len(token_ids),
            served,
            default=longest_answer(tenant, len(token_ids), n),
            param="messages",
        ),
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    service_class = class_of(body.service_tier, tenant)
    kv_policy = kv_policy_of(body.kv_policy, served.base_model, engines.pool.roster)
    request = request_body(
        tenant, served, token_ids, sampling, n, service_class, body.cache_salt, kv_policy
    )
    stops = stops_of(body, settings)
    generation = Generation(engines, served, [request], stops, continues_text=False, gate=gate)
    return ChatAnswer(body, generation)


async def _encode(body: ChatRequest, tokenizer: ChatTokenizer) -> list[int]:
    messages = [_plain(message) for message in body.messages]
    extras = body.model_extra or {}
    tools = None if extras.get("tool_choice") == "none" else body.tools
    num_chars = sum(len(str(message.get("content") or "")) for message in messages)
    return await off_loop_when_long(
        num_chars,
        lambda: tokenizer.encode_chat(
            messages, tools=tools, template_kwargs=body.chat_template_kwargs
        ),
    )


def _plain(message: ChatMessage) -> dict[str, Any]:
    """A message as templates know it: content as one string, `developer` by its older name."""
    plain = message.model_dump(exclude_none=True, exclude={"content"})
    if message.role == "developer":
        plain["role"] = "system"
    parts = message.content
    plain["content"] = parts if isinstance(parts, str) else "".join(p.text for p in parts or [])
    return plain


class ChatAnswer:
    """The answer to one chat request, whole or as chunks."""

    def __init__(self, body: ChatRequest, generation: Generation) -> None:
        self._body = body
        self._generation = generation
        self._tokenizer = generation.served.tokenizer
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def whole(self) -> ChatCompletion:
        """Wait for all choices.

        Raises:
            DomainError: refused, or the worker failed.
        """
        texts: list[list[str]] = [[] for _ in self._generation.choices]
        tokens: list[list[ScoredToken]] = [[] for _ in self._generation.choices]
        async for update in self._generation.updates():
            texts[update.index].append(update.piece.text)
            tokens[update.index].extend(update.piece.tokens)
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._generation.served.name,
            choices=[
                self._choice(index, choice, "".join(texts[index]), tokens[index])
                for index, choice in enumerate(self._generation.choices)
            ],
            usage=self._generation.usage,
            system_fingerprint=self._generation.served.fingerprint,
            service_tier=self._generation.service_tier,
        )

    def _choice(
        self, index: int, choice: Choice, text: str, tokens: Iterable[ScoredToken]
    ) -> ChatChoice:
        assert choice.finish_reason is not None
        return ChatChoice(
            index=index,
            message=AssistantMessage(content=text),
            logprobs=self._logprobs(tokens),
            finish_reason=choice.finish_reason,
        )

    def _logprobs(self, tokens: Iterable[ScoredToken]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return ChatLogprobs(content=[self._score(token) for token in tokens])

    def _score(self, token: ScoredToken) -> TokenLogprob:
        assert token.score is not None
        best = zip(token.score.top_ids, token.score.top_logprobs, strict=True)
        own = self._top(token.token_id, token.score.logprob)
        return TokenLogprob(
            token=own.token,
            logprob=own.logprob,
            bytes=own.bytes,
            top_logprobs=[self._top(other, logprob) for other, logprob in best],
        )

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        return TopLogprob(
            token=self._tokenizer.token_text(token_id),
            logprob=logprob,
            bytes=list(self._tokenizer.token_bytes(token_id)),
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events, one chunk per token, closed by [DONE].

        Raises:
            DomainError: refused, or the worker failed.
        """
        begun: set[int] = set()
        held: dict[int, list[ScoredToken]] = {}
        async with aclosing(self._generation.updates()) as updates:
            async for update in updates:
                tokens = held.setdefault(update.index, [])
                tokens.extend(update.piece.tokens)
                finish = update.choice.finish_reason
                if update.index not in begun and not update.piece.text and finish is None:
                    continue  # the role travels with the first text, so its clock is honest
                yield event(self._chunk(update, tokens, first=update.index not in begun))
                begun.add(update.index)
                held[update.index] = []
        if self._body.wants_usage:
            yield event(self._envelope([]) | {"usage": self._generation.usage})
        yield DONE

    def _chunk(self, update: Update, tokens: list[ScoredToken], *, first: bool) -> dict[str, Any]:
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        finish = update.choice.finish_reason
        if first or update.piece.text or finish is None:
            delta["content"] = update.piece.text
        choice = {
            "index": update.index,
            "delta": delta,
            "logprobs": self._logprobs(tokens),
            "finish_reason": finish,
        }
        return self._envelope([choice])

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk",
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
