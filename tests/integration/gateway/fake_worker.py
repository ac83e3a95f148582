"""A worker without a model: it speaks the real protocol on a real channel, as told."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scheduler.domain.adapter_tier import AdapterTier, Tier, told
from scheduler.domain.engine_stats import (
    EngineStats,
    HistogramTotals,
    JobShare,
    SloTotals,
    StepSample,
)
from scheduler.domain.message_codec import decode, encode
from scheduler.domain.messages import (
    TO_WORKER,
    Abort,
    BaseModelInfo,
    Frames,
    JobHint,
    Listening,
    Replay,
    Submit,
    TokenFrame,
    TokenLogprobs,
    WorkerCapabilities,
    WorkerInfo,
)
from scheduler.domain.request import FinishReason
from scheduler.domain.service_class import ClassTargets

if TYPE_CHECKING:
    from collections.abc import Callable

    from scheduler.domain.request import RequestBody
    from scheduler.store.channel import Channel

LORA_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "rank": {"type": "integer", "minimum": 1, "maximum": 256, "default": 16},
        "alpha": {"type": "number", "exclusiveMinimum": 0, "default": 32},
        "target_modules": {"type": "array", "items": {"enum": ["q_proj", "v_proj"]}},
    },
}
ADAMW_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"weight_decay": {"type": "number", "minimum": 0, "default": 0.01}},
}


COMPEFT_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"density": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}},
}
LADDER_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"guard": {"type": "number", "minimum": 0}},
}
SNAPKV_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "budget": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
        "window": {"type": "integer", "minimum": 1, "maximum": 1024, "default": 32},
        "num_sinks": {"type": "integer", "minimum": 0, "maximum": 64, "default": 0},
        "decode_interval": {"type": ["integer", "null"], "minimum": 16, "default": None},
    },
    "required": ["budget"],
}
PLAIN_SCHEMA = {"type": "object", "additionalProperties": False}


@dataclass
class Plan:
    """What the worker does with a request.

    Attributes:
        token_ids: the answer of every sequence, without an end token.
        delay_s: before the first token, then between tokens.
        lose_seq: this frame is not sent, unless it is asked for again.
        fail_at: at this frame an error is sent instead.
        fail_code: its code.
        prompt_logprob: of every token of a prompt that is to be scored.
    """

    token_ids: list[int]
    delay_s: float = 0.0
    lose_seq: int | None = None
    fail_at: int | None = None
    fail_code: str = "internal"
    silent: bool = False
    prompt_logprob: float = -0.5


@dataclass
class FakeWorker:
    """Announces itself, answers requests by plan, and remembers what it was told."""

    channel: Channel
    worker_id: str
    base_model: str
    eos_id: int
    plan: Callable[[RequestBody], Plan]
    boot_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    requests: list[RequestBody] = field(default_factory=list)
    aborts: list[Abort] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)
    hints: list[JobHint] = field(default_factory=list)
    num_told: int = 0
    num_waiting: int = 0
    tiers: tuple[AdapterTier, ...] = ()
    task: asyncio.Task[None] | None = None
    _is_muted: bool = False
    _sent: dict[str, tuple[str, list[TokenFrame]]] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def info(self) -> WorkerInfo:
        base = BaseModelInfo(
            id=self.base_model,
            digest="d" * 64,
            max_model_len=512,
            vocab_size=258,
            num_parameters=1,
            dtype="float32",
        )
        capabilities = WorkerCapabilities(
            base_models=(base,),
            peft_methods={"lora": LORA_SCHEMA},
            optimizers={"adamw": ADAMW_SCHEMA},
            objectives={"supervised": {"type": "object", "additionalProperties": False}},
            kv_policies={"snapkv": SNAPKV_SCHEMA},
            codecs={"compeft": COMPEFT_SCHEMA, "int8": PLAIN_SCHEMA},
            ladders={"compeft": LADDER_SCHEMA},
            merges={"linear": PLAIN_SCHEMA, "lorahub": PLAIN_SCHEMA},
            max_rank=64,
            max_num_sequences=8,
            service_classes={
                "default": ClassTargets(ttft_ms=500, tpot_ms=50),
                "best_effort": ClassTargets(),
                "gold": ClassTargets(ttft_ms=100, tpot_ms=10),
            },
        )
        stats = EngineStats(
            num_running=len(self._tasks),
            num_waiting=self.num_waiting,
            kv_usage=0.25,
            num_free_blocks=3,
            num_blocks=4,
            num_preemptions=0,
            prefix_queries=40,
            prefix_hits=30,
            kv_kept_tokens=12,
            kv_dropped_tokens=20,
            active_jobs=(),
            adapter_tiers=self.tiers,
            generation_tokens=7,
            trained_tokens=11,
            steps=tuple(_step(index) for index in range(60)),
            tokens_by_kind={"decode": 60, "train_backward": 5},
            histograms={
                "step_ms": HistogramTotals(bounds=(10.0, 20.0), counts=(1, 2, 3), total=150.0)
            },
            slo=(
                SloTotals(
                    service_class="gold",
                    target="tpot",
                    training_active=True,
                    num_within=99,
                    num_over=1,
                ),
            ),
        )
        return WorkerInfo(
            worker_id=self.worker_id,
            boot_id=self.boot_id,
            capabilities=capabilities,
            stats=stats,
        )

    async def run(self) -> None:
        """Live until cancelled."""
        announcing = asyncio.create_task(self._announce())
        last_id = "0"
        inbox = self.info.inbox
        try:
            while True:
                for _, entry_id, data in await self.channel.read({inbox: last_id}, block_ms=200):
                    last_id = entry_id
                    await self._obey(decode(TO_WORKER, data))
        finally:
            for task in (announcing, *self._tasks.values()):
                task.cancel()
            await asyncio.gather(announcing, *self._tasks.values(), return_exceptions=True)

    def mute(self) -> None:
        """Announce itself no more; everything else goes on."""
        self._is_muted = True

    async def _announce(self) -> None:
        while not self._is_muted:
            await self.channel.announce(self.info, ttl_s=1.0)
            await asyncio.sleep(0.1)

    async def _obey(self, message: Submit | Abort | Replay | Listening | JobHint) -> None:
        if isinstance(message, Submit):
            self.requests.append(message.request)
            task = asyncio.create_task(self._answer(message))
            self._tasks[message.request.request_id] = task
        elif isinstance(message, Abort):
            self.aborts.append(message)
            if message.index is None and message.request_id in self._tasks:
                self._tasks.pop(message.request_id).cancel()
        elif isinstance(message, Replay):
            self.replays.append(message)
            reply_to, frames = self._sent.get(message.request_id, ("", []))
            for frame in frames[message.from_seq :]:
                await self._send(reply_to, frame)
        elif isinstance(message, JobHint):
            self.hints.append(message)
        else:
            self.num_told += 1

    async def _answer(self, submit: Submit) -> None:
        request, plan = submit.request, self.plan(submit.request)
        frames: list[TokenFrame] = []
        self._sent[request.request_id] = (submit.reply_to, frames)
        if plan.silent:
            return
        steps = _steps(request, plan, self.eos_id)
        for place, (token_id, finish) in enumerate(steps):
            due = [a.index for a in request.wanted_answers if len(a.token_ids) <= place]
            await asyncio.sleep(plan.delay_s if due else 0)
            for index in due:
                seq = len(frames)
                frame = _frame(request, plan, index, seq, token_id, finish)
                if plan.fail_at == seq:
                    frame = frame.model_copy(
                        update={"error": "It broke.", "error_code": plan.fail_code}
                    )
                frames.append(frame)
                if plan.lose_seq != seq:
                    await self._send(submit.reply_to, frame)
                if frame.error:
                    return
        self._tasks.pop(request.request_id, None)

    async def _send(self, reply_to: str, frame: TokenFrame) -> None:
        await self.channel.append(reply_to, encode(Frames(reply_to=reply_to, frames=(frame,))))


def tier(name: Tier, *digests: str) -> AdapterTier:
    """A tier that holds these adapters and has served two requests."""
    return AdapterTier(
        tier=name,
        num_adapters=len(digests),
        num_hits=2,
        num_misses=1,
        num_loads=4,
        num_evictions=3,
        digests=told(digests),
    )


def _step(index: int) -> StepSample:
    return StepSample(
        index=index,
        decode_tokens=1,
        prefill_tokens=0,
        train_forward_tokens=0,
        train_backward_token_layers=4,
        jobs=(JobShare(job_id="ftjob-1", num_units=2),),
        step_ms=12.5,
        predicted_ms=12.0,
        slack_ms=None,
    )


def _steps(
    request: RequestBody, plan: Plan, eos_id: int
) -> list[tuple[int | None, FinishReason | None]]:
    wanted = request.sampling.max_tokens
    if wanted == 0:
        return [(None, FinishReason.LENGTH)]
    if len(plan.token_ids) < wanted:
        return [*((token, None) for token in plan.token_ids), (eos_id, FinishReason.STOP)]
    cut = plan.token_ids[:wanted]
    return [*((token, None) for token in cut[:-1]), (cut[-1], FinishReason.LENGTH)]


def _frame(
    request: RequestBody,
    plan: Plan,
    index: int,
    seq: int,
    token_id: int | None,
    finish: FinishReason | None,
) -> TokenFrame:
    sampling = request.sampling
    prompt_scores = None
    if sampling.prompt_logprobs and seq < request.n:
        scored = [_score(token, 1, plan.prompt_logprob) for token in request.prompt_token_ids[1:]]
        prompt_scores = (None, *scored)
    num_top = sampling.num_logprobs
    num_prompt, num_dropped = len(request.prompt_token_ids), _num_dropped(request, seq)
    scores = None if num_top is None or token_id is None else (_score(token_id, num_top),)
    return TokenFrame(
        request_id=request.request_id,
        index=index,
        seq=seq,
        token_ids=() if token_id is None else (token_id,),
        logprobs=scores,
        prompt_logprobs=prompt_scores,
        finish_reason=finish,
        num_cached_tokens=2,
        num_kept_tokens=None if request.kv_policy is None else num_prompt - num_dropped,
        num_dropped_tokens=num_dropped,
    )


def _num_dropped(request: RequestBody, seq: int) -> int:
    """Nothing with the first tokens, and one of the prompt's tokens from then on."""
    return int(request.kv_policy is not None and seq >= request.n)


def _score(token_id: int, num_top: int, logprob: float = -0.5) -> TokenLogprobs:
    top_ids = tuple(range(token_id, token_id + num_top))
    return TokenLogprobs(
        logprob=logprob,
        rank=1,
        top_ids=top_ids,
        top_logprobs=tuple(-0.5 - i for i in range(num_top)),
    )
