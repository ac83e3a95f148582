"""A request inside the engine: its sequences, its adapters, and every frame sent so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.engine_stats import RequestSample
from scheduler.domain.messages import Generate, TokenFrame, TokenLogprobs
from scheduler.domain.plan import Span
from scheduler.domain.request import BegunAnswer, FinishReason, RequestBody, Sequence
from workers.adapter_loader import Load
from workers.adapter_pool import AdapterSlot
from workers.drawn_tokens import SampledToken
from workers.kv_policy import KvPolicy
from workers.kv_watch import KvWatch
from workers.model_host import ModelHost


@dataclass(slots=True)
class WantedAdapter:
    """One adapter of a request, until its last frame.

    Attributes:
        load: on the way to a slot, while it has none.
        slot: held while any sequence is alive.
    """

    ref: AdapterRef
    load: Load | None = None
    slot: AdapterSlot | None = None

    @property
    def rank(self) -> int:
        """Arena columns that it takes; 0 while it is on the way."""
        if self.slot is not None:
            return self.slot.columns.rank
        return self.load.adapter.method.rank if self.load and self.load.adapter else 0


@dataclass(slots=True)
class LiveRequest:
    """State of one request from arrival to its last frame.

    Attributes:
        sequences: the answers' leads.
        members: by member, the adapter that its sequences run with; None: the bare base.
        is_queued: its sequences are with the scheduler; those of a cold adapter come later.
        frames: all frames so far, for a gateway that asks for a replay.
        prompt_scores: log-probabilities of the prompt, for a caller that asked for them.
        token_times_s: by sequence index, when each output token left.
        saw_training: a job trained on its base model while it was served.
        policy: compresses the K/V of its sequences.
        watches: by sequence id, what the policy has seen since it was compressed last.
    """

    order: Generate
    host: ModelHost
    sequences: list[Sequence]
    members: list[WantedAdapter | None]
    is_queued: bool = False
    frames: list[TokenFrame] = field(default_factory=list)
    prompt_scores: list[TokenLogprobs] = field(default_factory=list)
    token_times_s: dict[int, list[float]] = field(default_factory=dict)
    admitted_s: float | None = None
    saw_training: bool = False
    policy: KvPolicy | None = None
    watches: dict[str, KvWatch] = field(default_factory=dict)

    @classmethod
    def of(
        cls, order: Generate, host: ModelHost, now_s: float, policy: KvPolicy | None = None
    ) -> LiveRequest:
        """A request that has just arrived."""
        request = order.request
        sequences = [
            _answer(request, begun, now_s, host, policy) for begun in request.wanted_answers
        ]
        refs = [part.adapter for part in request.members]
        members = [None if ref is None else WantedAdapter(ref) for ref in refs]
        return cls(order, host, sequences, members, policy=policy)

    @property
    def adapters(self) -> list[WantedAdapter]:
        """The adapters of all members."""
        return [wanted for wanted in self.members if wanted is not None]

    @property
    def is_at_hand(self) -> bool:
        """Whether none of its adapters is on the way."""
        return all(a.load is None or a.load.adapter is not None for a in self.adapters)

    @property
    def is_done(self) -> bool:
        """Whether every sequence has ended."""
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    def frame(
        self,
        sequence: Sequence,
        token: SampledToken | None,
        *,
        error: str | None = None,
        error_code: str | None = None,
    ) -> TokenFrame:
        """The next frame of the request, remembered for a replay."""
        has_token = token is not None and token.token_id is not None
        is_first = has_token and sequence.num_output_tokens == 1
        scores = self.prompt_scores if sequence.request.sampling.prompt_logprobs else None
        frame = TokenFrame(
            request_id=sequence.request.request_id,
            index=sequence.index,
            seq=len(self.frames),
            token_ids=(token.token_id,) if token and token.token_id is not None else (),
            logprobs=(token.logprobs,) if token and token.logprobs else None,
            prompt_logprobs=(
                (None, *scores)
                if scores is not None and sequence.index == 0 and (is_first or not has_token)
                else None
            ),
            finish_reason=sequence.finish_reason,
            num_kept_tokens=self._num_kept(sequence),
            num_dropped_tokens=sequence.num_dropped_tokens,
            num_cached_tokens=self.sequences[0].num_cached_tokens,
            error=error,
            error_code=error_code,
        )
        self.frames.append(frame)
        return frame

    def watch(self, sequence: Sequence, span: Span) -> KvWatch | None:
        """What is to see the queries of a sequence's span; None: nobody wants to.

        A stretch that is computed again is watched anew.
        """
        cadence = sequence.cadence
        if self.policy is None or cadence is None or not cadence.sees(span.start, span.count):
            return None
        watch = self.watches.get(sequence.id)
        if watch is None or not watch.goes_on_at(span.start):
            num_layers = self.host.runner.decoder.config.num_layers
            stretch = cadence.stretch(span.start)
            watch = KvWatch(self.policy, num_layers, stretch, span.start)
            self.watches[sequence.id] = watch
        watch.stop += span.count
        return watch

    def _num_kept(self, sequence: Sequence) -> int | None:
        if self.policy is None:
            return None
        num_tokens = sequence.num_compressed_tokens or sequence.num_prompt_tokens
        return num_tokens - sequence.num_dropped_tokens

    def notice_training(self) -> None:
        """Remember whether a job trains beside the request."""
        self.saw_training = self.saw_training or bool(self.host.trainer.active)

    def sample(self, sequence: Sequence, now_s: float) -> RequestSample:
        """Latencies of a sequence that ends at `now_s`."""
        times = self.token_times_s.get(sequence.index, [])
        end_s = times[-1] if times else now_s
        return RequestSample(
            base_model=sequence.request.base_model,
            service_class=sequence.request.service_class,
            finish_reason=sequence.finish_reason or FinishReason.ABORT,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_output_tokens=sequence.num_output_tokens,
            queue_s=max(0.0, (self.admitted_s or sequence.arrival_s) - sequence.arrival_s),
            ttft_s=max(0.0, times[0] - sequence.arrival_s) if times else None,
            e2e_s=max(0.0, end_s - sequence.arrival_s),
            num_kept_tokens=self._num_kept(sequence),
            inter_token_s=tuple(b - a for a, b in pairwise(times)),
            training_active=self.saw_training,
        )


def _answer(
    request: RequestBody, begun: BegunAnswer, now_s: float, host: ModelHost, policy: KvPolicy | None
) -> Sequence:
    """The lead of the group of sequences that compute one answer."""
    num_prompt_tokens = len(request.prompt_token_ids)
    most = host.most_tokens(len(request.members))
    most = min(num_prompt_tokens + request.sampling.max_tokens, most)
    cadence = None if policy is None else policy.cadence(num_prompt_tokens, most - 1)
    lead, *followers = (
        Sequence(
            request,
            begun.index,
            [*request.prompt_token_ids, *begun.token_ids],
            now_s,
            most,
            member=member,
            weight=part.weight,
            cadence=cadence,
        )
        for member, part in enumerate(request.members)
    )
    lead.followers = followers
    return lead
