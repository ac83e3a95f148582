"""The requests inside the engine: taken in, admitted, answered token by token, ended."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from scheduler.domain.errors import (
    ContextTooLong,
    DomainError,
    InvalidInput,
    ModelNotFound,
    Overloaded,
)
from scheduler.domain.messages import Abort, Frames, Generate, Replay, TokenFrame, TokenLogprobs
from scheduler.domain.request import FinishReason, RequestBody, Sequence
from scheduler.domain.service_class import check_class
from workers.adapter_arena import AdapterColumns
from workers.adapter_file import LoadedAdapter
from workers.adapter_folder import read_folder
from workers.connection import Connection
from workers.engine_stats import EngineMeter
from workers.live_request import LiveRequest
from workers.model_host import ModelHost
from workers.sampler import SampledToken


class RequestDesk:
    """All live requests of an engine, over all its base models."""

    def __init__(
        self, hosts: Mapping[str, ModelHost], connection: Connection, meter: EngineMeter
    ) -> None:
        self.hosts = hosts
        self.connection = connection
        self.meter = meter
        self.live: dict[str, LiveRequest] = {}
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
        for sequence in request.sequences:
            request.host.scheduler.add(sequence)

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
        """Send frames of a live request again."""
        live = self.live.get(order.request_id)
        if live is not None and order.from_seq < len(live.frames):
            frames = tuple(live.frames[order.from_seq :])
            self.connection.send(Frames(reply_to=live.order.reply_to, frames=frames))

    def admit(self, sequence: Sequence) -> bool:
        """Bring a sequence's adapter into a slot; False while none is free, or if it is refused."""
        live = self.live[sequence.request.request_id]
        try:
            if not self._hold_adapter(live):
                return False
        except DomainError as error:
            self._refuse(live, error)
            return False
        if live.admitted_s is None:
            live.admitted_s = time.monotonic()
        return True

    def columns(self, sequence: Sequence) -> AdapterColumns | None:
        """Arena columns of a running sequence's adapter."""
        slot = self.live[sequence.request.request_id].slot
        return None if slot is None else slot.columns

    def keep_prompt_scores(
        self, sequence: Sequence, start: int, scores: list[TokenLogprobs]
    ) -> None:
        """Remember scores of the prompt from token `start` on; a preempted prompt comes again."""
        if sequence.index == 0 and sequence.num_output_tokens == 0:
            self.live[sequence.request.request_id].prompt_scores[start:] = scores

    def emit(self, host: ModelHost, sequences: list[Sequence], tokens: list[SampledToken]) -> None:
        """Append the drawn tokens and send one message of frames to each gateway."""
        now_s = time.monotonic()
        frames: dict[str, list[TokenFrame]] = defaultdict(list)
        for sequence, token in zip(sequences, tokens, strict=True):
            live = self.live.get(sequence.request.request_id)
            if live is None or sequence.finish_reason is not None:
                continue  # another answer of the request has just failed
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
        live = LiveRequest.of(order, host, time.monotonic())
        if request.adapter is not None and host.adapters.get(request.adapter.digest) is None:
            live.adapter = self._read_adapter(live)
        return live

    @staticmethod
    def _read_adapter(live: LiveRequest) -> LoadedAdapter:
        if live.order.adapter_dir is None:
            raise InvalidInput("The request names an adapter but came without its files.")
        return read_folder(Path(live.order.adapter_dir), live.host.runner.decoder.config)

    def _hold_adapter(self, live: LiveRequest) -> bool:
        """Hold the adapter's slot; only from here on, so that waiting requests block no columns."""
        adapter, pool = live.order.request.adapter, live.host.adapters
        if adapter is None or live.slot is not None:
            return True
        slot = pool.get(adapter.digest)
        if slot is None:
            slot = pool.try_load(adapter.digest, live.adapter or self._read_adapter(live))
        if slot is None:
            return False
        pool.acquire(slot)
        live.slot, live.adapter = slot, None
        return True

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
        sequence.token_ids.append(token.token_id)
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
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
        live.host.scheduler.remove(sequence)
        live.notice_training()
        targets = live.host.scheduler.classes[sequence.request.service_class]
        self.meter.count_request(live.sample(sequence, time.monotonic()), targets)

    def _forget_if_done(self, live: LiveRequest) -> None:
        if live.is_done:
            del self.live[live.order.request.request_id]
            if live.slot is not None:
                live.host.adapters.release(live.slot)


def check_request(request: RequestBody, host: ModelHost) -> None:
    """Refuse what would index outside of a table, or could never finish.

    Raises:
        ContextTooLong: the prompt is longer than the model's context or the K/V cache.
        InvalidInput: a token id outside the vocabulary, or an unknown service class.
    """
    biased = request.sampling.logit_bias
    for name, token_ids in (("prompt", request.prompt_token_ids), ("logit_bias", biased)):
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < host.info.vocab_size:
            raise InvalidInput(f"A token id of {name} is outside the vocabulary.", param=name)
    check_class(request.service_class, host.scheduler.classes)
    longest = max_tokens(host)
    if len(request.prompt_token_ids) > longest:
        raise ContextTooLong(
            f"The prompt has {len(request.prompt_token_ids)} tokens; this worker holds {longest}.",
            param="prompt",
        )


def max_tokens(host: ModelHost) -> int:
    """Longest sequence that the model's positions and the K/V cache hold."""
    pool = host.scheduler.pool
    return min(host.info.max_model_len, pool.num_blocks * pool.block_size - 1)


def finish_reason(sequence: Sequence, host: ModelHost) -> FinishReason | None:
    """Why a sequence ends with its newest token, if it does."""
    sampling = sequence.request.sampling
    token = sequence.token_ids[-1]
    if token in sampling.stop_token_ids or (token in host.eos_ids and not sampling.ignore_eos):
        return FinishReason.STOP
    if sequence.num_output_tokens >= sampling.max_tokens:
        return FinishReason.LENGTH
    if len(sequence.token_ids) >= max_tokens(host):
        return FinishReason.LENGTH
    return None
