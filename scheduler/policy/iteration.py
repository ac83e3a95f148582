"""Which tokens run in the next engine step.

There is no prefill or decode phase. Every sequence has tokens that are not yet computed: a new
request its whole prompt, a decoding one its last token. A step hands out a token budget until the
uncomputed tokens, the blocks or the budget run out. Serving goes first; training takes the slack.

Source: vLLM's V1 scheduler (num_computed_tokens catches up with num_tokens); FlexLLM,
arXiv:2402.18789 (serving and training tokens in one step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from scheduler.domain.plan import Span, StepPlan
from scheduler.domain.request import Sequence
from scheduler.policy.blocks import BlockPool
from scheduler.policy.fairness import OUTPUT_PRICE, PROMPT_PRICE, FairShare
from scheduler.policy.latency import ForwardShape, LatencyLaw
from scheduler.policy.slack import SloTargets, step_slack_ms
from scheduler.policy.training import (
    TrainDemand,
    Training,
    TrainingShare,
    plan_beside,
    plan_training,
)
from scheduler.policy.waiting import WaitingLines

GROWTH_TOKENS = 64  # room that is kept for each running sequence before anything is lent
LENDING_PAUSE_S = 0.5
MAX_STANDSTILL_S = 1.0  # training moves at least this often while every caller is ahead


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Bounds on one step.

    Attributes:
        idle_quantum_ms: training time of a step that nobody waits for; arrivals interrupt it.
    """

    max_batched_tokens: int
    max_num_sequences: int
    idle_quantum_ms: float = 100.0


class IterationScheduler:
    """Waiting and running sequences of one base model, and their blocks.

    Blocks that serving leaves free are lent to training; before any sequence is preempted, or kept
    waiting for blocks, training gives them back.
    """

    def __init__(
        self,
        pool: BlockPool,
        limits: StepLimits,
        law: LatencyLaw,
        classes: Mapping[str, SloTargets],
        fair: FairShare,
        training: Training,
        beside: LatencyLaw | None = None,
    ) -> None:
        self.pool = pool
        self.limits = limits
        self.law = law
        self.beside = beside
        self.classes = classes
        self.fair = fair
        self.training = training
        self.waiting = WaitingLines(fair)
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._training_ran_s = 0.0
        self._is_recalling = False
        self._lends_from_s = 0.0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, with all that follow it."""
        self.fair.enter(sequence.request.tenant_id)
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and its followers, wherever they stand, and free their blocks."""
        if sequence in self.running:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)
        self.fair.leave(sequence.request.tenant_id)

    def schedule(self, now_s: float, admit: Callable[[Sequence], bool]) -> StepPlan:
        """Fill one step: serving first, then training within the slack that is left.

        `admit` is asked when a sequence is about to run; False leaves it waiting.
        """
        spans = self._spans(admit)
        demands = self.training.demands(self._lendable_blocks(now_s))
        shape = self.forward_shape(spans, ())
        inference_ms = self.law.forward_ms(shape)
        slack_ms = step_slack_ms(
            [*self.running, *self.waiting], self.classes, now_s, inference_ms + self.law.margin_ms
        )
        budget_ms = self.limits.idle_quantum_ms if slack_ms is None else slack_ms
        share = plan_training(
            demands,
            budget_ms,
            self.law,
            self._window_cost(shape) if spans else None,
            must_advance=self._is_starving(now_s, slack_ms),
        )
        if spans and slack_ms is not None:
            share = self._better(share, demands, shape, inference_ms, inference_ms + slack_ms)
        if share.windows or share.units or share.beside:
            self._training_ran_s = now_s
        return StepPlan(
            spans=spans,
            windows=share.windows,
            beside=share.beside,
            units=share.units,
            fresh_blocks=self.pool.take_fresh(),
            predicted_ms=inference_ms + share.expected_ms,
            slack_ms=slack_ms,
        )

    def _better(
        self,
        share: TrainingShare,
        demands: list[TrainDemand],
        shape: ForwardShape,
        inference_ms: float,
        step_ms: float,
    ) -> TrainingShare:
        """The share, or one beside the forward, whichever saves more time.

        Longer spans (prefill) use the whole machine: beside them nothing is gained.
        """
        if self.beside is None or shape.score_pairs:
            return share
        lane_ms = self.beside.forward_ms(shape) + self.beside.margin_ms
        if lane_ms > step_ms:
            return share
        lanes = plan_beside(demands, step_ms, lane_ms, self.law, self.beside)
        lanes = replace(lanes, expected_ms=lanes.expected_ms - inference_ms)
        return max(share, lanes, key=TrainingShare.saved_ms) if lanes.beside else share

    def commit(self, plan: StepPlan) -> None:
        """Count a step's tokens as computed, and charge their tenants."""
        by_id = {sequence.id: sequence for sequence in self.running}
        for span in plan.spans:
            sequence = by_id.get(span.sequence_id)
            if sequence is not None:
                sequence.num_computed_tokens = span.start + span.count
                self._charge(sequence, span)

    def observe_forward(self, plan: StepPlan, elapsed_ms: float) -> None:
        """Let the law learn what a plan's packed forward took."""
        windows = tuple((window.start, window.count) for window in plan.windows)
        law = self.beside if plan.beside and self.beside is not None else self.law
        law.observe_forward(self.forward_shape(plan.spans, windows), elapsed_ms)

    def forward_shape(
        self, spans: tuple[Span, ...], windows: tuple[tuple[int, int], ...]
    ) -> ForwardShape:
        """Cost features of a packed forward; windows are (start, count) pairs."""
        long = [(s.start, s.count) for s in spans if s.count > 1] + list(windows)
        return ForwardShape(
            num_rows=sum(s.count for s in spans) + sum(count for _, count in windows),
            num_spans=len(spans) + len(windows),
            context_tokens=sum(s.start + 1 for s in spans if s.count == 1),
            score_pairs=sum(count * (start + count) for start, count in long),
        )

    def _charge(self, sequence: Sequence, span: Span) -> None:
        request = sequence.request
        prompt = max(0, min(span.start + span.count, sequence.num_prompt_tokens) - span.start)
        cost = prompt * PROMPT_PRICE + (span.count - prompt) * OUTPUT_PRICE
        self.fair.charge(request.tenant_id, request.tenant_weight, cost)

    def _is_starving(self, now_s: float, slack_ms: float | None) -> bool:
        """Nobody waits; or nobody is late, and training has stood still for long."""
        if slack_ms is None:
            return True
        return slack_ms > 0 and now_s - self._training_ran_s > MAX_STANDSTILL_S

    def _window_cost(self, shape: ForwardShape) -> Callable[[int], float]:
        base_ms = self.law.forward_ms(shape)

        def cost_ms(count: int) -> float:
            wider = ForwardShape(
                shape.num_rows + count,
                shape.num_spans + 1,
                shape.context_tokens,
                shape.score_pairs + count * count,
            )
            return max(0.0, self.law.forward_ms(wider) - base_ms) if count else 0.0

        return cost_ms

    def _spans(self, admit: Callable[[Sequence], bool]) -> tuple[Span, ...]:
        """Spans of the step, without those of sequences that were preempted after their turn."""
        spans = list(self._serve(admit))
        running = {sequence.id for sequence in self.running}
        return tuple(span for span in spans if span.sequence_id in running)

    def _serve(self, admit: Callable[[Sequence], bool]) -> Iterator[Span]:
        """Spans of running groups, shortest first, then of those that may be admitted."""
        budget = self.limits.max_batched_tokens
        for lead in sorted(self._leads(), key=lambda s: s.num_uncomputed_tokens > 1):
            if lead not in self.running:
                continue  # preempted by one before it
            count = min(lead.num_uncomputed_tokens, budget // len(lead.group))
            if count > 0 and self._make_room(lead, count):
                budget -= count * len(lead.group)
                yield from _spans_of(lead, count)
        while (admitted := self._next_admitted(admit, budget)) is not None:
            count = min(admitted.num_uncomputed_tokens, budget // len(admitted.group))
            budget -= count * len(admitted.group)
            yield from _spans_of(admitted, count)

    def _leads(self) -> list[Sequence]:
        return [sequence for sequence in self.running if sequence.member == 0]

    def _next_admitted(self, admit: Callable[[Sequence], bool], budget: int) -> Sequence | None:
        """Start the first head of a line, in fair order, whose adapters have room.

        Where the blocks do not suffice nobody is let past, or small prompts would starve long ones;
        nor where a group does not fit beside those that run.
        """
        room = min(self.limits.max_num_sequences - len(self.running), budget)
        if room <= 0:
            return None
        for lead in self.waiting.heads():
            if len(lead.group) > room or not self._have_free(self._blocks_to_begin(lead)):
                return None
            if admit(lead):
                self.waiting.remove(lead)
                self._start(lead)
                return lead
        return None

    def _start(self, lead: Sequence) -> None:
        for sequence in lead.group:
            self.running.append(sequence)
            needed = self.pool.blocks_for(len(sequence.token_ids) + 1)
            sequence.block_table = self.pool.allocate(sequence.id, needed)

    def _make_room(self, lead: Sequence, count: int) -> bool:
        """Blocks for `count` more tokens, preempting later arrivals; False: it lost its own."""
        while not self._grow(lead, count):
            victim = max(self._leads(), key=lambda s: (s.arrival_s, s.id))  # never a tie
            self._preempt(victim)
            if victim is lead:
                return False
        return True

    def _grow(self, lead: Sequence, count: int) -> bool:
        needed = self.pool.blocks_for(lead.num_computed_tokens + count)
        missing = needed - len(lead.block_table)
        if missing > 0:
            if not self._have_free(missing * len(lead.group)):
                return False
            for sequence in lead.group:
                sequence.block_table += self.pool.allocate(sequence.id, missing)
        return True

    # ---- memory that training borrows ------------------------------------------------------

    def _have_free(self, count: int) -> bool:
        """Whether `count` blocks are free, if need be because training gives some back."""
        missing = count - self.pool.num_free
        if missing > 0 and self.pool.num_lent:
            self.training.give_back(missing)
            self._is_recalling = True
        return self.pool.can_allocate(count)

    def _lendable_blocks(self, now_s: float) -> int:
        """Blocks that neither those who run nor those next in line will soon need.

        After a recall nothing is lent for a while, or training would begin in vain.
        """
        if self._is_recalling:
            self._lends_from_s, self._is_recalling = now_s + LENDING_PAUSE_S, False
        if now_s < self._lends_from_s:
            return 0
        size = self.pool.block_size
        growth = sum(
            self.pool.blocks_for(len(s.token_ids) + GROWTH_TOKENS) - len(s.block_table)
            for s in self.running
            if len(s.block_table) * size < len(s.token_ids) + GROWTH_TOKENS
        )
        next_in_line = sum(map(self._blocks_to_begin, self.waiting.heads()))
        return max(0, self.pool.num_free - growth - next_in_line)

    def _blocks_to_begin(self, lead: Sequence) -> int:
        return self.pool.blocks_for(len(lead.token_ids) + 1) * len(lead.group)

    def _preempt(self, lead: Sequence) -> None:
        self._stop(lead)
        for sequence in lead.group:
            sequence.num_computed_tokens = 0
            sequence.num_preemptions += 1
            self.num_preemptions += 1
        self.waiting.put_back(lead)

    def _stop(self, lead: Sequence) -> None:
        for sequence in lead.group:
            self.running.remove(sequence)
            self.pool.free(sequence.id, sequence.block_table)
            sequence.block_table = []


def _spans_of(lead: Sequence, count: int) -> Iterator[Span]:
    """The same tokens for every sequence of a group."""
    for sequence in lead.group:
        yield Span(sequence.id, sequence.num_computed_tokens, count)
