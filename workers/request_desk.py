"""The requests inside the engine: taken in, admitted, answered token by token, ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from scheduler.domain.adapter import AdapterKey
from scheduler.domain.adapter_tier import AdapterTier
from scheduler.domain.errors import (
    ContextTooLong,
    DomainError,
    InvalidInput,
    ModelNotFound,
    Overloaded,
)
from scheduler.domain.messages import Abort, Frames, Generate, Replay, TokenFrame, TokenLogprobs
from scheduler.domain.plan import Span
from scheduler.domain.request import FinishReason, KvPolicyChoice, RequestBody, Sequence
from scheduler.domain.service_class import check_class
from workers.adapter_arena import AdapterColumns
from workers.adapter_loader import AdapterLoader
from workers.adapter_tiers import ram_tier, slot_tier
from workers.connection import Connection
from workers.drawn_tokens import SampledToken
from workers.ended_answers import EndedAnswers
from workers.engine_stats import EngineMeter
from workers.group import ALONE, Group
from workers.kv_watch import KvWatch
from workers.live_request import LiveRequest, WantedAdapter
from workers.model_host import ModelHost
from workers.request_policy import request_policy, with_default

MIN_COPYING_S = 4e-3  # of a step, while others run: what comes on top waits for the next
COPYING_SHARE = 0.1  # and of a long step this share of the time since the one before


class RequestDesk:
    """All live requests of an engine, over all its base models."""

    def __init__(
        self,
        hosts: Mapping[str, ModelHost],
        connection: Connection,
        meter: EngineMeter,
        loader: AdapterLoader,
        default_policy: KvPolicyChoice | None = None,
        group: Group = ALONE,
    ) -> None:
        self.hosts = hosts
        self.connection = connection
        self.meter = meter
        self.loader = loader
        self.default_policy = default_policy
        self.group = group
        self._may_copy_s = MIN_COPYING_S
        self._collected_s = self.group.now_s()
        self.live: dict[str, LiveRequest] = {}
        self.ended = EndedAnswers()
        self.is_closed = False

    def generate(self, order: Generate) -> None:
        """Take a request in; what cannot be served is answered with the reason."""
        if order.request.request_id in self.live:
            return  # sent twice
        try:
            request = self._accept(order)
        except DomainError as error:
            frame = TokenFrame(
                request_id=order.request.request_id,
                index=0,
                seq=0,
                finish_reason=FinishReason.ERROR,
                error=error.message,
                error_code=error.code,
            )
            self.connection.send(Frames(reply_to=order.reply_to, frames=(frame,)))
            return
        self.live[order.request.request_id] = request
        found = [self._find_adapter(request, wanted) for wanted in request.adapters]
        if all(found):
            self._enqueue(request)

    def collect_adapters(self) -> None:
        """Queue the requests whose adapters have come, refuse those whose adapter cannot come."""
        now_s = self.group.now_s()
        self._may_copy_s = max(MIN_COPYING_S, COPYING_SHARE * (now_s - self._collected_s))
        self._collected_s = now_s
        for load in self.loader.collect():
            self.meter.count_load(load)
            for live in [self.live[request_id] for request_id in sorted(load.waiters)]:
                if load.error is not None:
                    self._refuse(live, load.error)
                elif not live.is_queued and live.is_at_hand:
                    self._enqueue(live)

    def abort(self, order: Abort) -> None:
        """The caller has left: end a request, or one of its answers."""
        live = self.live.get(order.request_id)
        if live is None:
            return
        for sequence in live.sequences:
            if sequence.finish_reason is None and order.index in (None, sequence.index):
                self._end(live, sequence, FinishReason.ABORT)
        self._forget_if_done(live)

    def replay(self, order: Replay) -> None:
        """Send frames of a request again."""
        live = self.live.get(order.request_id)
        frames = self.ended.again(order) if live is None else tuple(live.frames[order.from_seq :])
        self.connection.send(Frames(reply_to=order.reply_to, frames=frames))

    def admit(self, sequence: Sequence) -> bool:
        """Bring a group's adapters into slots; False while there are none, or if it is refused."""
        live = self.live[sequence.request.request_id]
        try:
            if not self._hold_adapters(live):
                return False
        except DomainError as error:
            self._refuse(live, error)
            return False
        if live.admitted_s is None:
            live.admitted_s = self.group.now_s()
        return True

    @property
    def num_loading(self) -> int:
        """Answers that wait for their adapters."""
        return sum(len(live.sequences) for live in self.live.values() if not live.is_queued)

    def adapter_tiers(self) -> tuple[AdapterTier, ...]:
        """Where the engine keeps adapters."""
        return (
            slot_tier([host.adapters for host in self.hosts.values()]),
            ram_tier(self.loader.shelf),
        )

    def columns(self, sequence: Sequence) -> AdapterColumns | None:
        """Arena columns of a running sequence's adapter."""
        wanted = self.live[sequence.request.request_id].members[sequence.member]
        return None if wanted is None or wanted.slot is None else wanted.slot.columns

    def watch(self, sequence: Sequence, span: Span) -> KvWatch | None:
        """What is to see the queries of a running sequence's span."""
        return self.live[sequence.request.request_id].watch(sequence, span)

    def keep_prompt_scores(
        self, sequence: Sequence, start: int, scores: list[TokenLogprobs]
    ) -> None:
        """Remember scores of the prompt from token `start` on; a preempted prompt comes again."""
        if sequence.index == 0 and sequence.num_output_tokens == 0:
            self.live[sequence.request.request_id].prompt_scores[start:] = scores

    def emit(self, host: ModelHost, sequences: list[Sequence], tokens: list[SampledToken]) -> None:
        """Write down the drawn tokens and send one message of frames to each gateway."""
        now_s = self.group.now_s()
        frames: dict[str, list[TokenFrame]] = defaultdict(list)
        for sequence, token in zip(sequences, tokens, strict=True):
            live = self.live.get(sequence.request.request_id)
            if live is None or sequence.finish_reason is not None:
                continue  # it ended after the draw
            frames[live.order.reply_to].append(self._deliver(host, live, sequence, token, now_s))
            self._forget_if_done(live)
        for reply_to, batch in frames.items():
            self.connection.send(Frames(reply_to=reply_to, frames=tuple(batch)))

    def _accept(self, order: Generate) -> LiveRequest:
        request = order.request
        host = self.hosts.get(request.base_model)
        if host is None:
            raise ModelNotFound(f"This worker does not hold the base model {request.base_model!r}.")
        if self.is_closed:
            raise Overloaded("This worker is shutting down; try again.")
        check_request(request, host)
        if any(adapter.digest not in order.adapter_dirs for adapter in request.adapters):
            raise InvalidInput("The request names an adapter but came without its files.")
        config = host.runner.decoder.config
        request = with_default(request, self.default_policy, config)
        policy = request_policy(request, config)
        if policy is not None and not self.group.is_alone:
            raise InvalidInput(
                "A worker that shares its model between ranks compresses no K/V.", param="kv_policy"
            )
        order = order.model_copy(update={"request": request})
        return LiveRequest.of(order, host, self.group.now_s(), policy)

    def _find_adapter(self, live: LiveRequest, wanted: WantedAdapter) -> bool:
        """Whether the adapter is in a slot or at hand for one; otherwise it is sent for."""
        digest, is_pinned = wanted.ref.digest, wanted.ref.is_pinned
        in_slot = live.host.adapters.find(digest, is_pinned=is_pinned) is not None
        key = AdapterKey(live.order.request.base_model, digest)
        self.loader.shelf.count(key, in_slot=in_slot, is_pinned=is_pinned)
        return in_slot or self._is_at_hand(live, wanted)

    def _is_at_hand(self, live: LiveRequest, wanted: WantedAdapter) -> bool:
        """Whether the adapter can be copied into a slot; it is sent for if it cannot."""
        if wanted.load is None:
            decoder = live.host.runner.decoder
            wanted.load = self.loader.ask(
                live.order, wanted.ref, decoder.arena.model, decoder.arena
            )
        return wanted.load.adapter is not None

    def _enqueue(self, live: LiveRequest) -> None:
        live.is_queued = True
        for sequence in live.sequences:
            if sequence.finish_reason is None:
                live.host.scheduler.add(sequence)

    def _withdraw(self, live: LiveRequest) -> None:
        live.is_queued = False
        for sequence in live.sequences:
            if sequence.finish_reason is None:
                live.host.scheduler.remove(sequence)

    def _hold_adapters(self, live: LiveRequest) -> bool:
        """Hold the slots of all adapters, or of none: a part would block columns in vain.

        Only from here on, so that waiting requests block no columns either.
        """
        cold = [wanted for wanted in live.adapters if not self._hold(live, wanted)]
        absent = [wanted for wanted in cold if not self._is_at_hand(live, wanted)]
        if absent:  # they had slots when the request was queued, and have lost them since
            self._withdraw(live)
            self._let_go(live)
            return False
        check_ranks(live)
        if not all(self._fill_slot(live, wanted) for wanted in cold):
            self._let_go(live)
            if not live.host.scheduler.running:  # room enough, but not in one piece
                live.host.adapters.evict_idle()
            return False
        self._leave_loads(live)
        return True

    def _hold(self, live: LiveRequest, wanted: WantedAdapter) -> bool:
        """Hold the adapter's slot, if it is in one."""
        pool = live.host.adapters
        if wanted.slot is None and (slot := pool.get(wanted.ref.digest)) is not None:
            pool.acquire(slot)
            wanted.slot = slot
        return wanted.slot is not None

    def _fill_slot(self, live: LiveRequest, wanted: WantedAdapter) -> bool:
        """Copy the adapter into columns, unless others have to wait too long for it."""
        assert wanted.load is not None
        assert wanted.load.adapter is not None
        if self._may_copy_s < 0 and live.host.scheduler.running:
            return False
        began_s = self.group.now_s()
        live.host.adapters.try_load(
            wanted.ref.digest, wanted.load.adapter, is_pinned=wanted.ref.is_pinned
        )
        self._may_copy_s -= self.group.now_s() - began_s
        return self._hold(live, wanted)

    def _let_go(self, live: LiveRequest) -> None:
        for wanted in live.adapters:
            if wanted.slot is not None:
                live.host.adapters.release(wanted.slot)
                wanted.slot = None

    def _leave_loads(self, live: LiveRequest) -> None:
        for wanted in live.adapters:
            if wanted.load is not None:
                self.loader.leave(wanted.load, live.order.request.request_id)
                wanted.load = None

    def _refuse(self, live: LiveRequest, error: DomainError) -> None:
        """End a request that waits, with the reason."""
        first = next(s for s in live.sequences if s.finish_reason is None)
        self._end_all(live)
        frame = live.frame(first, None, error=error.message, error_code=error.code)
        self.connection.send(Frames(reply_to=live.order.reply_to, frames=(frame,)))
        self._forget_if_done(live)

    def _deliver(
        self,
        host: ModelHost,
        live: LiveRequest,
        sequence: Sequence,
        token: SampledToken,
        now_s: float,
    ) -> TokenFrame:
        if token.token_id is None:
            host.scheduler.distrust(sequence)
            self._end_all(live)
            return live.frame(
                sequence,
                None,
                error="The model gave logits that are not finite.",
                error_code="not_finite",
            )
        if sequence.request.sampling.max_tokens == 0:
            self._end(live, sequence, FinishReason.LENGTH)
            return live.frame(sequence, None)
        self.meter.output_tokens += 1
        sequence.read(token.token_id)
        for member in sequence.group:
            if member.first_token_s is None:
                member.first_token_s = now_s
        live.token_times_s.setdefault(sequence.index, []).append(now_s)
        live.notice_training()
        reason = finish_reason(sequence, host)
        if reason is not None:
            self._end(live, sequence, reason)
        return live.frame(sequence, token)

    def _end_all(self, live: LiveRequest) -> None:
        """End every sequence of a request in error: an error frame is a request's last."""
        for sequence in live.sequences:
            if sequence.finish_reason is None:
                self._end(live, sequence, FinishReason.ERROR)

    def _end(self, live: LiveRequest, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        sequence.forget_unread()
        if live.is_queued:
            live.host.scheduler.remove(sequence)
        live.notice_training()
        targets = live.host.scheduler.classes[sequence.request.service_class]
        self.meter.count_request(live.sample(sequence, self.group.now_s()), targets)

    def _forget_if_done(self, live: LiveRequest) -> None:
        if live.is_done:
            self.ended.add(self.live.pop(live.order.request.request_id))
            self._leave_loads(live)
            self._let_go(live)


def check_request(request: RequestBody, host: ModelHost) -> None:
    """Refuse what would index outside of a table, or could never finish.

    Raises:
        ContextTooLong: the prompt is longer than the model's context or the K/V cache.
        InvalidInput: a token id outside the vocabulary, an unknown service class, or more models
            in a mixture than sequences may run at once.
    """
    named = [("prompt", request.prompt_token_ids), ("logit_bias", request.sampling.logit_bias)]
    named += [("begun", answer.token_ids) for answer in request.begun]
    for name, token_ids in named:
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < host.info.vocab_size:
            raise InvalidInput(f"A token id of {name} is outside the vocabulary.", param=name)
    check_class(request.service_class, host.scheduler.classes)
    check_mixture(request, host)
    longest = host.most_tokens(len(request.members))
    num_begun = max(len(answer.token_ids) for answer in request.wanted_answers)
    if (num_tokens := len(request.prompt_token_ids) + num_begun) > longest:
        raise ContextTooLong(
            f"The prompt has {num_tokens} tokens; this worker holds {longest}.", param="prompt"
        )


def check_mixture(request: RequestBody, host: ModelHost) -> None:
    """Refuse a mixture that could never run.

    Raises:
        InvalidInput: the batch is too small for its members.
    """
    limits = host.scheduler.limits
    most = min(limits.max_num_sequences, limits.max_batched_tokens)
    if len(request.members) > most:
        raise InvalidInput(
            f"{len(request.members)} models are mixed; this worker mixes at most {most}.",
            param="logit_arithmetic",
        )


def check_ranks(live: LiveRequest) -> None:
    """Refuse a mixture whose adapters never fit the arena together.

    Raises:
        InvalidInput: with the sum of ranks that fits.
    """
    most = live.host.adapters.arena.num_columns
    total = sum(wanted.rank for wanted in live.adapters)
    if len(live.adapters) > 1 and total > most:
        raise InvalidInput(
            f"The ranks of the mixed adapters add up to {total}; this worker holds {most}.",
            param="logit_arithmetic",
        )


def finish_reason(sequence: Sequence, host: ModelHost) -> FinishReason | None:
    """Why a sequence ends with its newest token, if it does."""
    sampling = sequence.request.sampling
    token = sequence.token_ids[-1]
    if token in sampling.stop_token_ids or (token in host.eos_ids and not sampling.ignore_eos):
        return FinishReason.STOP
    if len(sequence.token_ids) >= sequence.most_tokens:
        return FinishReason.LENGTH
    return None
