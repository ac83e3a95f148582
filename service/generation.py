"""One HTTP request being answered: prompts out to workers, choices back, and what it cost."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.choice import Choice, Piece
from service.service_tier import tier_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from contextlib import AbstractAsyncContextManager

    from scheduler.domain.messages import TokenFrame, TokenLogprobs
    from scheduler.domain.request import RequestBody
    from service.answers import Answers
    from service.catalogue import ServedModel
    from service.metrics import GatewayMetrics
    from service.rate_gate import RateGate
    from service.service_tier import ServedTier
    from service.usage_meter import UsageMeter
    from service.worker_pool import WorkerPool

from service.schemas.usage import KvTokens, PromptTokensDetails, UsageRead


@dataclass(frozen=True, slots=True)
class Update:
    """Something that became visible in the choice at `index`; the choice tells if it ended."""

    index: int
    choice: Choice
    piece: Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """What every generation of a gateway shares."""

    pool: WorkerPool
    metrics: GatewayMetrics
    meter: UsageMeter


class Generation:
    """Runs the requests of one call; choice `index` is prompt position x n + answer.

    Args:
        engines: the gateway's pool and counters.
        served: the model.
        bodies: one request per prompt, all with the same `n`.
        stops: stop strings.
        continues_text: answers go on from the prompt's text.
        gate: what the call has to pass; None where no limit applies.
    """

    def __init__(
        self,
        engines: Engines,
        served: ServedModel,
        bodies: Sequence[RequestBody],
        stops: Sequence[str],
        *,
        continues_text: bool,
        gate: RateGate | None = None,
    ) -> None:
        self.served = served
        self.bodies = bodies
        self.prompt_scores: dict[int, tuple[TokenLogprobs | None, ...]] = {}
        self._engines = engines
        self._gate = gate
        self._num_metered = 0
        sampling = bodies[0].sampling
        ends = frozenset() if sampling.ignore_eos else served.tokenizer.eos_ids
        end_ids = ends | frozenset(sampling.stop_token_ids)
        self.choices = [
            Choice(served.tokenizer, stops, end_ids, continues_text=continues_text)
            for body in bodies
            for _ in range(body.n)
        ]
        self._num_cached = [0] * len(bodies)
        self._kv: dict[int, KvTokens] = {}
        self._start_s = time.perf_counter()
        self._first_s = [self._start_s] * len(self.choices)
        self._last_s = [self._start_s] * len(self.choices)

    @property
    def usage(self) -> UsageRead:
        """Tokens so far."""
        prompt = sum(len(body.prompt_token_ids) for body in self.bodies)
        output = sum(choice.num_tokens for choice in self.choices)
        return UsageRead(
            prompt_tokens=prompt,
            completion_tokens=output,
            total_tokens=prompt + output,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(self._num_cached)),
            kv_tokens=self._kv_tokens,
        )

    @property
    def _kv_tokens(self) -> KvTokens | None:
        """What the KV policy has left so far, of each prompt and its answer that lost most."""
        if not self._kv:
            return None
        tokens = self._kv.values()
        return KvTokens(kept=sum(t.kept for t in tokens), dropped=sum(t.dropped for t in tokens))

    @property
    def service_tier(self) -> ServedTier:
        """How the requests are served, in OpenAI's words."""
        return tier_of(self.bodies[0].service_class)

    @property
    def max_tokens(self) -> int:
        """The most that it may come to, prompts included."""
        return sum(
            len(body.prompt_token_ids) + body.n * body.sampling.max_tokens for body in self.bodies
        )

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Everything that becomes visible, until all choices have ended.

        Raises:
            DomainError: the request was refused, or its worker failed.
        """
        async with self._passed_gate(), self._engines.pool.open(self.bodies) as answers:
            try:
                async for position, frame in answers:
                    for update in self._absorb(position, frame, answers):
                        yield update
            finally:
                self._settle()

    def _passed_gate(self) -> AbstractAsyncContextManager[None]:
        if self._gate is None:
            return nullcontext()
        return self._gate.reserved(self.max_tokens, lambda: self._num_metered)

    def _absorb(self, position: int, frame: TokenFrame, answers: Answers) -> list[Update]:
        index = position * self.bodies[position].n + frame.index
        choice = self.choices[index]
        self._num_cached[position] = max(self._num_cached[position], frame.num_cached_tokens)
        if frame.num_kept_tokens is not None:
            now = KvTokens(kept=frame.num_kept_tokens, dropped=frame.num_dropped_tokens)
            before = self._kv.get(position, now)
            self._kv[position] = max(before, now, key=lambda tokens: tokens.dropped)
        if frame.prompt_logprobs is not None:
            self.prompt_scores.setdefault(position, frame.prompt_logprobs)
        self._clock(index, choice, frame)
        updates = [Update(index, choice, piece) for piece in choice.push(frame)]
        if choice.stopped_early:
            answers.stop(position, frame.index)
        if choice.finish_reason is not None:
            self._record_end(index, choice)
        return updates

    def _clock(self, index: int, choice: Choice, frame: TokenFrame) -> None:
        if not frame.token_ids:
            return
        now_s = time.perf_counter()
        metrics, model = self._engines.metrics, self.served.base_model
        if choice.num_tokens == 0:
            metrics.first_token(model, now_s - self._start_s)
            self._first_s[index] = now_s
        else:
            metrics.next_tokens(model, now_s - self._last_s[index], len(frame.token_ids))
        self._last_s[index] = now_s

    def _record_end(self, index: int, choice: Choice) -> None:
        assert choice.finish_reason is not None
        self._engines.metrics.request_done(
            self.served.base_model,
            choice.finish_reason,
            elapsed_s=self._last_s[index] - self._start_s,
            decode_s=self._last_s[index] - self._first_s[index],
            num_tokens=choice.num_tokens,
        )

    def _settle(self) -> None:
        usage = self.usage
        self._num_metered = usage.total_tokens
        self._engines.meter.add(
            self.bodies[0].tenant_id,
            self.served.name,
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
        )
        for choice in self.choices:
            if choice.finish_reason is None:
                self._engines.metrics.request_aborted(self.served.base_model)
