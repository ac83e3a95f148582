"""Which tokens run in the next engine step.

There is no prefill or decode phase. Every sequence has tokens that are not yet computed: a new
request its whole prompt, a decoding one its last token. A step hands out a token budget until the
uncomputed tokens, the blocks or the budget run out. Serving goes first; training takes the slack.

Source: vLLM's V1 scheduler (num_computed_tokens catches up with num_tokens); FlexLLM,
arXiv:2402.18789 (serving and training tokens in one step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from scheduler.domain.plan import Span, StepPlan
from scheduler.domain.request import HeadLayout, Sequence
from scheduler.policy.blocks import BlockPool
from scheduler.policy.fairness import OUTPUT_PRICE, PROMPT_PRICE, FairShare
from scheduler.policy.latency import ForwardShape, LatencyLaw
from scheduler.policy.prefix_cache import PrefixCache
from scheduler.policy.prompt_pace import paced_tokens
from scheduler.policy.slack import SloTargets, step_slack_ms
from scheduler.policy.training import Training, TrainingShare
from scheduler.policy.training_planner import TrainingPlanner
from scheduler.policy.waiting import WaitingLines

GROWTH_TOKENS = 64  # room that is kept for each running sequence before anything is lent
LENDING_PAUSE_S = 0.5
BEST_EFFORT_TARGETS = SloTargets(ttft_ms=None, tpot_ms=None)


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
        prefixes: PrefixCache,
        beside: LatencyLaw | None = None,
        *,
        share_idles: bool = True,
    ) -> None:
        self.pool = pool
        self.limits = limits
        self.law = law
        self.planner = TrainingPlanner(law, beside, limits.idle_quantum_ms, share_idles=share_idles)
        self.prefixes = prefixes
        self.classes = classes
        self.fair = fair
        self.training = training
        self.waiting = WaitingLines(fair)
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._is_full = False
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

    def distrust(self, sequence: Sequence) -> None:
        """Let nobody find what a sequence and its followers have computed."""
        for member in sequence.group:
            self.pool.unpublish(member.block_table)

    def schedule(self, now_s: float, admit: Callable[[Sequence], bool]) -> StepPlan:
        """Fill one step: serving first, then training within the slack that is left.

        `admit` is asked when a sequence is about to run; False leaves it waiting.
        """
        is_beside = self._goes_on_beside(now_s)
        spans = tuple(self._decode_only() if is_beside else self._serve(now_s, admit))
        shape = ForwardShape.of(spans, ())
        inference_ms = self.law.forward_ms(shape) + self.law.margin_ms(shape)
        slack_ms = step_slack_ms(self._callers(), self.classes, now_s, inference_ms)
        share = TrainingShare()
        if not self.training.lane_runs:
            demands = self.training.demands(self._lendable_blocks(now_s))
            share = self.planner.share(demands, shape, slack_ms, now_s)
            is_beside = bool(share.beside)
        return StepPlan(
            spans=spans,
            windows=share.windows,
            beside=share.beside,
            is_beside=is_beside,
            units=share.units,
            fresh_blocks=self.pool.take_fresh(),
            predicted_ms=self.planner.expected_ms(shape, share, is_beside=is_beside),
            slack_ms=slack_ms,
        )

    def _callers(self) -> list[Sequence]:
        return [*self.running, *self.waiting]

    def _hurried(self) -> list[Sequence]:
        """Whom a best-effort prompt gives way to: not to those who wait for what it holds."""
        return self.running if self._is_full else self._callers()

    def _goes_on_beside(self, now_s: float) -> bool:
        """Whether to decode beside a lane that still runs; otherwise it is waited for.

        Prompts wait with it: they use the whole machine, and beside a lane nothing is gained.
        """
        if not self.training.lane_runs:
            return False
        decoding = [_span(s, 1) for s in self.running if s.is_decoding]
        is_awaited = bool(self.waiting) or any(s.num_next_tokens > 1 for s in self.running)
        if self.planner.decodes_beside(tuple(decoding), now_s, is_awaited=is_awaited):
            return True
        self.training.finish_lane()
        return False

    def lay_out(self, sequence: Sequence, layout: HeadLayout) -> tuple[int, ...] | None:
        """Give a running sequence blocks of its own for `layout`, in place of all it has now.

        It finds too little only where others share what it frees, or pages of more heads begin.

        Returns:
            The new blocks, which hold what a former owner left; None: it was preempted.
        """
        self.pool.free(sequence.id, sequence.block_table)
        sequence.block_table = []
        needed = layout.blocks_for(sequence.num_computed_tokens)
        while not self._have_free(needed):
            self._preempt(self._latest())
            if sequence not in self.running:
                return None
        sequence.block_table = self.pool.allocate(sequence.id, needed)
        sequence.layout, sequence.num_dropped_tokens = layout, layout.num_dropped
        sequence.num_compressed_tokens = sequence.num_computed_tokens
        return self.pool.take_fresh()

    def commit(self, plan: StepPlan) -> None:
        """Count a step's tokens as computed, publish the blocks they fill, charge their tenants."""
        by_id = {sequence.id: sequence for sequence in self.running}
        for span in plan.spans:
            sequence = by_id.get(span.sequence_id)
            if sequence is not None:
                sequence.num_computed_tokens = span.start + span.count
                self.prefixes.publish(sequence, span.start)
                self._charge(sequence, span)

    def observe_forward(self, plan: StepPlan, elapsed_ms: float) -> None:
        """Let the law learn what a plan's packed forward took."""
        self.planner.observe_forward(plan, elapsed_ms)

    def _charge(self, sequence: Sequence, span: Span) -> None:
        request = sequence.request
        prompt = max(0, min(span.start + span.count, sequence.num_prompt_tokens) - span.start)
        cost = prompt * PROMPT_PRICE + (span.count - prompt) * OUTPUT_PRICE
        self.fair.charge(request.tenant_id, request.tenant_weight, cost)

    def _still_running(self, spans: Iterable[Span]) -> list[Span]:
        """Spans without those of sequences that were preempted after their turn."""
        spans = list(spans)
        running = {sequence.id for sequence in self.running}
        return [span for span in spans if span.sequence_id in running]

    def _serve(self, now_s: float, admit: Callable[[Sequence], bool]) -> list[Span]:
        """Spans of running groups, shortest first, then of those that may be admitted."""
        spans: list[Span] = []
        budget = self.limits.max_batched_tokens
        for lead in sorted(self._leads(), key=self._turn):
            if lead not in self.running:
                continue  # preempted by one before it
            count = self._num_tokens(lead, budget, spans, now_s)
            if count > 0 and self._make_room(lead, count):
                budget -= count * len(lead.group)
                spans += _spans_of(lead, count)
        spans = self._still_running(spans)
        self._is_full = False
        while (admitted := self._next_admitted(admit, budget)) is not None:
            count = self._num_tokens(admitted, budget, spans, now_s)
            budget -= count * len(admitted.group)
            spans += _spans_of(admitted, count)
        return spans

    def _turn(self, lead: Sequence) -> tuple[bool, bool]:
        """Decode first, then prompts, best-effort ones last."""
        return lead.num_uncomputed_tokens > 1, self._is_best_effort(lead)

    def _is_best_effort(self, lead: Sequence) -> bool:
        return self.classes[lead.request.service_class] == BEST_EFFORT_TARGETS

    def _num_tokens(self, lead: Sequence, budget: int, spans: list[Span], now_s: float) -> int:
        """Tokens of a group in this step, which holds `spans` already."""
        count = min(lead.num_next_tokens, budget // len(lead.group))
        if count <= 1 or not self._is_best_effort(lead):
            return count
        held = tuple(spans)
        shape = ForwardShape.of(held, ())
        inference_ms = self.law.forward_ms(shape) + self.law.margin_ms(shape)
        slack_ms = step_slack_ms(self._hurried(), self.classes, now_s, inference_ms)
        if slack_ms is None:
            return count
        return paced_tokens(self.law, held, tuple(_spans_of(lead, count)), slack_ms)

    def _decode_only(self) -> list[Span]:
        """Spans of running groups that need one token each; prompts wait for the lane's end."""
        spans: list[Span] = []
        for lead in self._leads():
            if lead in self.running and lead.is_decoding and self._make_room(lead, 1):
                spans += _spans_of(lead, 1)
        return self._still_running(spans)

    def _leads(self) -> list[Sequence]:
        return [sequence for sequence in self.running if sequence.member == 0]

    def _next_admitted(self, admit: Callable[[Sequence], bool], budget: int) -> Sequence | None:
        """Start the first head of a line, in fair order, whose adapters have room.

        One whose prompt is just being computed by another sequence is passed over.

        Where the blocks do not suffice nobody is let past, or small prompts would starve long ones;
        nor where a group does not fit beside those that run, or was preempted in this very step and
        has not read its last token.
        """
        seats = self.limits.max_num_sequences - len(self.running)
        if budget <= 0:
            return None
        for lead in self.waiting.heads():
            if lead.has_unread:
                return None
            self._is_full = len(lead.group) > seats or not self._pin_if_it_fits(lead)
            if self._is_full:
                return None
            if len(lead.group) > budget:
                self._give_up_blocks(lead)
                return None
            if not self.prefixes.is_coming(lead, self._worth_awaiting(lead)) and admit(lead):
                self.waiting.remove(lead)
                self._start(lead)
                return lead
            self._give_up_blocks(lead)
        return None

    def _pin_if_it_fits(self, lead: Sequence) -> bool:
        """Hold the blocks that a group finds computed, if there is room for the others.

        They are held before it is asked what is free: until then they are free as well.
        """
        self.prefixes.pin(lead)
        needed = self._blocks_to_begin(lead)
        if lead.cadence is not None:  # once compressed, it keeps nothing that others hold
            needed += sum(self.pool.num_shared(member.block_table) for member in lead.group)
        if self._have_free(needed):
            return True
        self._give_up_blocks(lead)
        return False

    def _worth_awaiting(self, lead: Sequence) -> list[Sequence]:
        """Whose prompts a group may wait for: with targets, not for those that give way to it."""
        if self._is_best_effort(lead):
            return self.running
        return [sequence for sequence in self.running if not self._is_best_effort(sequence)]

    def _start(self, lead: Sequence) -> None:
        missing = self._blocks_to_begin(lead) // len(lead.group)
        for sequence in lead.group:
            self.running.append(sequence)
            self.prefixes.begin(sequence)
            sequence.block_table += self.pool.allocate(sequence.id, missing)

    def _make_room(self, lead: Sequence, count: int) -> bool:
        """Blocks for `count` more tokens, preempting later arrivals; False: it lost its own."""
        while not self._grow(lead, count):
            victim = self._latest()
            self._preempt(victim)
            if victim is lead:
                return False
        return True

    def _latest(self) -> Sequence:
        """The lead that arrived last; never a tie."""
        return max(self._leads(), key=lambda s: (s.arrival_s, s.id))

    def _grow(self, lead: Sequence, count: int) -> bool:
        missing = [self._missing(s, s.num_computed_tokens + count) for s in lead.group]
        if any(missing):
            if not self._have_free(sum(missing)):
                return False
            for sequence, number in zip(lead.group, missing, strict=True):
                sequence.block_table += self.pool.allocate(sequence.id, number)
        return True

    def _missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks that a sequence lacks to hold `num_tokens`."""
        blocks_for = (sequence.layout or self.pool).blocks_for
        return max(0, blocks_for(num_tokens) - len(sequence.block_table))

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
        ahead = (s.held_until_compressed(len(s.token_ids) + GROWTH_TOKENS) for s in self.running)
        growth = sum(map(self._missing, self.running, ahead))
        next_in_line = sum(map(self._blocks_to_begin, self.waiting.heads()))
        return max(0, self.pool.num_free - growth - next_in_line)

    def _blocks_to_begin(self, lead: Sequence) -> int:
        """Blocks that a waiting group needs beside those it holds."""
        needed = self.pool.blocks_for(lead.held_until_compressed(len(lead.token_ids) + 1))
        return (needed - len(lead.block_table)) * len(lead.group)

    def _preempt(self, lead: Sequence) -> None:
        self._stop(lead)
        for sequence in lead.group:
            sequence.num_computed_tokens = 0
            sequence.num_compressed_tokens = sequence.num_dropped_tokens = 0
            sequence.num_preemptions += 1
            self.num_preemptions += 1
        self.waiting.put_back(lead)

    def _stop(self, lead: Sequence) -> None:
        for sequence in lead.group:
            self.running.remove(sequence)
        self._give_up_blocks(lead)

    def _give_up_blocks(self, lead: Sequence) -> None:
        for sequence in lead.group:
            self.pool.free(sequence.id, sequence.block_table)
            sequence.block_table, sequence.layout = [], None


def _spans_of(lead: Sequence, count: int) -> Iterator[Span]:
    """The same tokens for every sequence of a group."""
    for sequence in lead.group:
        yield _span(sequence, count)


def _span(sequence: Sequence, count: int) -> Span:
    """A sequence's next tokens."""
    adapter = "" if sequence.adapter is None else sequence.adapter.digest
    computed, dropped = sequence.num_computed_tokens, sequence.num_dropped_tokens
    return Span(sequence.id, computed, count, dropped, adapter)
