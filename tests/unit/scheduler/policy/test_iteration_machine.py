"""Random histories of the scheduler: blocks are conserved, plans fit, and nobody starves.

The engine's part is played by a memory that holds, in place of K and V, what they are made of.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.plan import Span, StepPlan
from scheduler.domain.request import RequestBody, SamplingParams, Sequence, WeightedModel
from scheduler.policy.blocks import BlockPool
from scheduler.policy.fairness import FairShare
from scheduler.policy.iteration import IterationScheduler, StepLimits
from scheduler.policy.latency import LatencyLaw, RowCosts
from scheduler.policy.pack_cursor import PackCursor
from scheduler.policy.prefix_cache import PrefixCache
from scheduler.policy.slack import SloTargets
from scheduler.policy.training import TrainDemand

BLOCK_SIZE = 4
NUM_BLOCKS = 12  # of which block 0 is nobody's
CAPACITY = (NUM_BLOCKS - 1) * BLOCK_SIZE - 1  # of one sequence
BUDGET = 16
MAX_SEQUENCES = 5
DRAWN = 7  # the token that every draw gives
CLASSES = {"default": SloTargets(500.0, 100.0), "best_effort": SloTargets(None, None)}
TENANTS = st.sampled_from(["a", "b", "c"])


class Borrower:
    """A job that takes as many blocks as it may, and gives loans back one by one."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.num_tokens = 0
        self.appetite = 0
        self.loans: list[range] = []
        self.num_held = 0  # after serving took what it needs, before anything new is borrowed

    def demands(self, lendable_blocks: int) -> list[TrainDemand]:
        """A pack of the tokens that are set."""
        self.num_held = self.pool.num_lent
        count = min(self.appetite, lendable_blocks)
        if count and (run := self.pool.lend(count)) is not None:
            self.loans.append(run)
        return [demand(self.num_tokens)] if self.num_tokens else []

    @property
    def lane_runs(self) -> bool:
        """No lane outlasts a step here."""
        return False

    def finish_lane(self) -> None:
        """None runs."""

    def give_back(self, num_blocks: int) -> None:
        """End loans until enough is free."""
        assert self.loans
        while self.loans and num_blocks > 0:
            run = self.loans.pop()
            self.pool.take_back(run)
            num_blocks -= len(run)


def new_scheduler() -> IterationScheduler:
    pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
    return IterationScheduler(
        pool,
        StepLimits(BUDGET, MAX_SEQUENCES),
        LatencyLaw(RowCosts((1, 16), (1.0, 2.0)), num_layers=2),
        CLASSES,
        FairShare(),
        Borrower(pool),
        PrefixCache(pool, "base"),
    )


class Memory:
    """What each slot of each block was computed from."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, int], object] = {}

    def lose(self, blocks: tuple[int, ...] | range) -> None:
        """Another one writes to the blocks, or they are cleared."""
        for block in blocks:
            for offset in range(BLOCK_SIZE):
                self.slots.pop((block, offset), None)

    def run(self, sequence: Sequence, span: Span) -> None:
        """Write a span's tokens; all that they attend to must be of the same text and weights."""
        for position in range(span.start, span.start + span.count):
            place = sequence.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE
            assert place not in self.slots, "a block that holds something is written to"
            self.slots[place] = origin(sequence, position)
        for position in range(span.start + span.count):
            place = sequence.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE
            assert self.slots.get(place) == origin(sequence, position)


def origin(sequence: Sequence, position: int) -> object:
    """All that K and V at a position follow from."""
    adapter = sequence.request.members[sequence.member].adapter
    tokens = [DRAWN if token < 0 else token for token in sequence.token_ids[: position + 1]]
    return sequence.request.tenant_id, adapter, tuple(tokens)


def body(
    request_id: str, prompt: list[int], tenant_id: str, n: int, service_class: str, size: int
) -> RequestBody:
    return RequestBody(
        request_id=request_id,
        tenant_id=tenant_id,
        base_model="m",
        prompt_token_ids=tuple(prompt),
        n=n,
        sampling=SamplingParams(prompt_logprobs=n == 3),
        service_class=service_class,
        mixture=tuple(WeightedModel(adapter=adapter(i), weight=1.0) for i in range(size)),
    )


def adapter(number: int) -> AdapterRef | None:
    """The bare base, then adapters."""
    if number == 0:
        return None
    return AdapterRef(adapter_id="a", version=number, digest=f"d{number}", uri="none")


class History(RuleBasedStateMachine):
    """A scheduler, the engine's part of its contract, and what must hold after every rule."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = new_scheduler()
        assert isinstance(self.scheduler.training, Borrower)
        self.borrower = self.scheduler.training
        self.alive: dict[str, Sequence] = {}
        self.wanted: dict[str, int] = {}
        self.memory = Memory()
        self.num_requests = 0
        self.now_s = 0.0
        self.columns_are_free = True

    @rule(
        prompt=st.one_of(st.integers(1, 6), st.integers(1, CAPACITY)),
        output=st.integers(10, 40),
        n=st.integers(1, 3),
        size=st.sampled_from([1, 1, 1, 2, 3]),
        twist=st.one_of(st.none(), st.integers(0, CAPACITY)),
        tenant_id=TENANTS,
        service_class=st.sampled_from(sorted(CLASSES)),
    )
    def add(
        self,
        prompt: int,
        output: int,
        n: int,
        size: int,
        twist: int | None,
        tenant_id: str,
        service_class: str,
    ) -> None:
        longest = capacity(size)
        prompt = min(prompt, longest)
        tokens = [99 if position == twist else position for position in range(prompt)]
        request = body(f"r{self.num_requests}", tokens, tenant_id, n, service_class, size)
        self.num_requests += 1
        for index in range(n):
            wanted = max(prompt + 1, min(prompt + output, longest))
            lead = group(request, index, size, self.now_s)
            for member in lead.group:
                member.most_tokens = wanted + index % 2
            self.alive[lead.id] = lead
            self.wanted[lead.id] = wanted
            self.scheduler.add(lead)

    @rule(num_steps=st.integers(1, 8), tokens=st.integers(0, 200), passes_s=st.floats(0, 0.2))
    def step(self, num_steps: int, tokens: int, passes_s: float) -> None:
        for _ in range(num_steps):
            self.now_s += passes_s
            self._step(tokens)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self._end(self.alive[data.draw(st.sampled_from(sorted(self.alive)))])

    @rule(are_free=st.booleans())
    def adapters_come_and_go(self, are_free: bool) -> None:
        self.columns_are_free = are_free

    @rule(appetite=st.integers(0, NUM_BLOCKS))
    def training_wants_memory(self, appetite: int) -> None:
        self.borrower.appetite = appetite

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """An answer whose numbers are not finite ends, and leaves nothing to be found."""
        lead = self.alive[data.draw(st.sampled_from(sorted(self.alive)))]
        blocks = {block for member in lead.group for block in member.block_table}
        self.scheduler.distrust(lead)
        self._end(lead)
        keys = [key for member in lead.group for key in member.block_keys]
        assert not blocks & {b for key in keys for b in self.scheduler.pool.find([key])}

    @rule()
    def all_work_ends(self) -> None:
        """Nobody starves: left alone, everything that waits or runs comes to its end."""
        self.columns_are_free = True
        for _ in range(4000):
            if not self.alive:
                break
            self._step(0)
        assert not self.alive
        pool = self.scheduler.pool
        assert pool.num_free + pool.num_lent == pool.num_blocks

    @invariant()
    def every_block_is_free_lent_or_held(self) -> None:
        pool = self.scheduler.pool
        pool.check_conserved()
        owned = Counter(b for s in self._sequences() for b in s.block_table)
        assert 0 not in owned
        assert pool.num_lent == sum(map(len, self.borrower.loans))
        assert pool.num_free + pool.num_lent + len(owned) == pool.num_blocks

    @invariant()
    def every_living_group_waits_or_runs_as_a_whole(self) -> None:
        leads, running = list(self.scheduler.waiting), self.scheduler.running
        waiting = [member for lead in leads for member in lead.group]
        assert len(self.scheduler.waiting) == len(leads)
        everything = sorted(s.id for s in [*waiting, *running])
        assert everything == sorted(s.id for s in self._sequences())
        assert all(not s.block_table and s.num_computed_tokens == 0 for s in waiting)
        assert len(running) <= MAX_SEQUENCES

    @invariant()
    def the_sequences_of_a_group_advance_together(self) -> None:
        for lead in self.alive.values():
            assert {s.num_computed_tokens for s in lead.group} == {lead.num_computed_tokens}
            assert {len(s.block_table) for s in lead.group} == {len(lead.block_table)}
            assert all(s.token_ids == lead.token_ids for s in lead.group)

    def _sequences(self) -> list[Sequence]:
        return [member for lead in self.alive.values() for member in lead.group]

    def _admit(self, sequence: Sequence) -> bool:
        return self.columns_are_free or sequence.request.tenant_id == "a"

    def _step(self, num_training_tokens: int) -> None:
        before = {s.id: set(s.block_table) for s in self._sequences()}
        num_preemptions = self.scheduler.num_preemptions
        self.borrower.num_tokens = num_training_tokens
        plan = self.scheduler.schedule(self.now_s, self._admit)
        if self.scheduler.num_preemptions > num_preemptions:
            assert self.borrower.num_held == 0, "a request was preempted while training held blocks"
        running = {s.id: s for s in self.scheduler.running}
        assert plan.num_inference_tokens <= BUDGET
        assert len({span.sequence_id for span in plan.spans}) == len(plan.spans)
        for span in plan.spans:
            sequence = running[span.sequence_id]
            assert span.count > 0
            assert span.start == sequence.num_computed_tokens
            assert span.start + span.count <= len(sequence.token_ids)
            assert span.start + span.count < sequence.most_tokens
            assert span.count == 1 or not sequence.has_unread
            needed = (sequence.layout or self.scheduler.pool).blocks_for(span.start + span.count)
            assert len(sequence.block_table) >= needed
        for sequence in self.scheduler.running:
            fresh = set(sequence.block_table) - before[sequence.id]
            computed = sequence.block_table[: sequence.num_computed_tokens // BLOCK_SIZE]
            assert fresh <= set(plan.fresh_blocks) | set(computed)
        for run in self.borrower.loans:
            self.memory.lose(run)
        self.memory.lose(plan.fresh_blocks)
        for span in plan.spans:
            self.memory.run(running[span.sequence_id], span)
        self._follow(plan, [s for s in running.values() if s.member == 0])

    def _follow(self, plan: StepPlan, leads: list[Sequence]) -> None:
        """What the engine does once a step has been issued."""
        self.scheduler.commit(plan)
        for lead in _complete(leads):
            lead.append_unread(0)
            self._read(lead)

    def _read(self, lead: Sequence) -> None:
        lead.read(DRAWN)
        for sequence in lead.group:
            sequence.first_token_s = sequence.first_token_s or self.now_s
        if len(lead.token_ids) >= self.wanted[lead.id]:
            self._end(lead)

    def _end(self, lead: Sequence) -> None:
        del self.alive[lead.id]
        lead.forget_unread()
        self.scheduler.remove(lead)


class LateHistory(History):
    """The same, where the tokens of a step are read once the next one has been issued.

    Every other answer ends where nobody could know it from counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unread: list[Sequence] = []

    def _follow(self, plan: StepPlan, leads: list[Sequence]) -> None:
        for lead in self.unread:
            if self.alive.get(lead.id) is lead:
                self._read(lead)
        self.scheduler.commit(plan)
        self.unread = [lead for lead in _complete(leads) if self.alive.get(lead.id) is lead]
        for row, lead in enumerate(self.unread):
            lead.append_unread(row)

    @invariant()
    def nothing_follows_an_unread_token(self) -> None:
        for lead in self.alive.values():
            assert all(token >= 0 for token in lead.token_ids[:-1])
            assert len(lead.token_ids) <= self.wanted[lead.id]


def _complete(leads: list[Sequence]) -> list[Sequence]:
    """Those whose tokens are all computed, so that a next one is drawn."""
    return [lead for lead in leads if lead.num_uncomputed_tokens == 0]


def capacity(size: int) -> int:
    """Tokens of the longest answer that `size` models can compute together."""
    return (NUM_BLOCKS - 1) // size * BLOCK_SIZE - 1


def group(request: RequestBody, index: int, size: int, now_s: float) -> Sequence:
    """The lead of `size` sequences that compute one answer."""
    lead, *followers = (
        Sequence(request, index, list(request.prompt_token_ids), now_s, member=member)
        for member in range(size)
    )
    lead.followers = followers
    return lead


def demand(num_tokens: int) -> TrainDemand:
    cursor = PackCursor.begin(
        num_tokens, num_layers=2, trains=True, window_tokens=256, range_tokens=256
    )
    return TrainDemand("job", cursor, 0.0)


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)

TestLateHistory = LateHistory.TestCase
TestLateHistory.settings = TestHistory.settings
