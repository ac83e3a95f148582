"""What is found of a prompt is neither computed nor charged; what must not be found is not."""

from __future__ import annotations

import pytest

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.kv_cadence import KvCadence
from scheduler.domain.plan import StepPlan
from scheduler.domain.request import RequestBody, SamplingParams, Sequence, WeightedModel
from scheduler.policy.latency import ForwardShape
from tests.unit.scheduler.policy.fake_engine import FakeEngine

BLOCK_SIZE = 4
ADAPTER = WeightedModel(
    adapter=AdapterRef(adapter_id="a", version=1, digest="d", uri="none"), weight=1.0
)


def run(engine: FakeEngine, sequence: Sequence) -> list[StepPlan]:
    """Step until a sequence has ended; the plans of all steps."""
    plans = []
    while sequence not in engine.ended:
        plans.append(engine.step())
    return plans


def submit(engine: FakeEngine, body: RequestBody, index: int = 0, output: int = 5) -> Sequence:
    """Ask for an answer to a request, as the engine does it."""
    lead, *followers = (
        Sequence(body, index, list(body.prompt_token_ids), engine.now_s, member=member)
        for member in range(len(body.members))
    )
    lead.followers = followers
    engine.wanted[lead.id] = output
    engine.scheduler.add(lead)
    return lead


def body(name: str, prompt: int, **fields: object) -> RequestBody:
    return RequestBody(
        request_id=name,
        tenant_id="t",
        base_model="m",
        prompt_token_ids=tuple(range(prompt)),
        **fields,
    )


def test_a_second_request_computes_and_pays_only_what_the_first_did_not() -> None:
    engine = FakeEngine()
    run(engine, engine.ask("first", prompt=40))
    charged = engine.fair.level("t")

    second = engine.ask("second", prompt=43, output=1)
    (plan,) = run(engine, second)

    assert [(span.start, span.count) for span in plan.spans] == [(40, 3)]
    assert ForwardShape.of(plan.spans, ()).num_rows == 3
    assert engine.fair.level("t") - charged == 3.0
    assert second.num_cached_tokens == 40
    assert engine.scheduler.prefixes.num_queries == 40 + 43
    assert engine.scheduler.prefixes.num_hits == 40


def test_one_token_of_a_prompt_that_is_known_is_computed_all_the_same() -> None:
    engine = FakeEngine()
    run(engine, engine.ask("first", prompt=40))

    second = engine.ask("second", prompt=40)
    plan = run(engine, second)[0]

    assert [(span.start, span.count) for span in plan.spans] == [(36, 4)]


def test_a_second_turn_finds_the_first_ones_answer() -> None:
    engine = FakeEngine()
    first = engine.ask("first", prompt=8, output=9)
    run(engine, first)
    turn = RequestBody(
        request_id="second",
        tenant_id="t",
        base_model="m",
        prompt_token_ids=(*first.token_ids, 1, 2, 3),
    )

    second = submit(engine, turn)
    run(engine, second)

    assert second.num_cached_tokens == 16  # 8 of the prompt, 8 computed of 9 drawn


def test_a_tenant_finds_nothing_of_anothers() -> None:
    engine = FakeEngine()
    first = engine.ask("first", prompt=40)
    second = engine.ask("second", prompt=40, tenant_id="u")
    for _ in range(3):
        engine.step()

    assert second.num_computed_tokens >= 40
    assert not set(first.block_table) & set(second.block_table)
    run(engine, second)
    third = engine.ask("third", prompt=40, tenant_id="v")
    run(engine, third)
    assert second.num_cached_tokens == third.num_cached_tokens == 0


def test_requests_of_one_tenant_with_different_salts_find_nothing_of_each_other() -> None:
    engine = FakeEngine()
    first, second, third = (
        submit(engine, body(f"r{place}", 40, cache_salt=salt))
        for place, salt in enumerate(["one", "other", "one"])
    )

    for sequence in (first, second, third):
        run(engine, sequence)

    assert [s.num_cached_tokens for s in (first, second, third)] == [0, 0, 36]


def test_who_wants_scores_of_a_prompt_gets_all_of_it_computed_and_shares_it_then() -> None:
    engine = FakeEngine()
    first = engine.ask("first", prompt=40, output=50)
    engine.step()

    scored = submit(
        engine, body("scored", 40, sampling=SamplingParams(prompt_logprobs=True)), output=50
    )
    plan = engine.step()

    assert (scored.id, 0, 40) in [(s.sequence_id, s.start, s.count) for s in plan.spans]
    assert scored.block_table[:10] == first.block_table[:10]
    assert engine.scheduler.prefixes.num_queries == 40


def test_answers_to_one_prompt_compute_it_once_and_hold_its_blocks_together() -> None:
    engine = FakeEngine()
    request = body("r", 21, n=3)
    answers = [submit(engine, request, index, output=50) for index in range(3)]

    steps = [engine.step().spans, engine.step().spans]

    first, second = ([(span.start, span.count) for span in spans] for spans in steps)
    assert first == [(0, 21)]
    assert second == [(21, 1), (20, 1), (20, 1)]
    assert len({tuple(a.block_table[:5]) for a in answers}) == 1
    assert len({a.block_table[5] for a in answers}) == 3
    pool = engine.scheduler.pool
    assert pool.num_blocks - pool.num_free == 5 + 3
    pool.check_conserved()


@pytest.mark.parametrize(("alike", "waits"), [(20, True), (16, False)])  # of 40 tokens
def test_a_prompt_waits_for_one_that_computes_half_of_it(alike: int, waits: bool) -> None:
    engine = FakeEngine()
    engine.ask("first", prompt=alike, output=50)
    engine.ask("second", prompt=40)
    engine.ask("stranger", prompt=4, tenant_id="u")

    spans = {span.sequence_id: span.count for span in engine.step().spans}
    after = {span.sequence_id: span.start for span in engine.step().spans}

    assert spans.get("second/0") == (None if waits else 40)
    assert after["second/0"] == (alike if waits else 40)
    assert spans["stranger/0"] == 4


def test_equal_blocks_that_were_computed_side_by_side_become_one() -> None:
    engine = FakeEngine()
    answers = [engine.ask(f"r{length}", prompt=length, output=50) for length in (13, 30)]

    engine.step()

    short, long = answers
    assert long.num_cached_tokens == 0
    assert short.block_table[:3] == long.block_table[:3]
    engine.scheduler.pool.check_conserved()


def test_a_mixture_takes_over_as_much_as_each_of_its_models_knows() -> None:
    engine = FakeEngine()
    base = WeightedModel(adapter=None, weight=1.0)
    run(engine, engine.ask("of-the-base", prompt=40))
    run(engine, submit(engine, body("of-the-adapter", 20, adapter=ADAPTER.adapter)))

    mixture = submit(engine, body("both", 40, mixture=(base, ADAPTER)))
    plan = engine.scheduler.schedule(engine.now_s, lambda _: True)

    assert [(span.start, span.count) for span in plan.spans] == [(20, 20), (20, 20)]
    assert [member.num_cached_tokens for member in mixture.group] == [20, 20]


def test_who_is_not_let_in_holds_nothing() -> None:
    engine = FakeEngine()
    run(engine, engine.ask("first", prompt=40))
    waiting = engine.ask("second", prompt=40)

    engine.scheduler.schedule(engine.now_s, lambda _: False)

    pool = engine.scheduler.pool
    assert waiting.block_table == []
    assert pool.num_free == pool.num_blocks
    assert engine.scheduler.prefixes.num_queries == 40


def test_blocks_that_are_found_are_not_taken_for_the_rest_of_the_same_prompt() -> None:
    engine = FakeEngine(num_blocks=13)
    run(engine, engine.ask("old", prompt=20, output=1))
    run(engine, submit(engine, body("other", 24, adapter=ADAPTER.adapter), output=1))

    again = engine.ask("again", prompt=40, output=1)  # 5 blocks of `old`, 6 more, 1 of them empty
    engine.step()

    assert again.num_cached_tokens == 20
    assert again in engine.ended


def test_a_preempted_request_finds_what_it_had_computed() -> None:
    engine = FakeEngine(num_blocks=21)
    first = engine.ask("first", prompt=20, output=40)
    late = engine.ask("late", prompt=24, output=20, tenant_id="u")
    while not late.num_preemptions:
        engine.step()
    before = len(late.token_ids)

    starts = [
        span.start
        for plan in run(engine, late)
        for span in plan.spans
        if span.sequence_id == late.id
    ]

    assert first in engine.ended
    assert len(late.token_ids) > before
    assert starts[0] > 0
    assert late.num_cached_tokens == 0
    assert engine.scheduler.prefixes.num_hits == 0


def test_what_came_of_numbers_that_are_not_finite_is_found_by_nobody() -> None:
    engine = FakeEngine()
    broken = engine.ask("broken", prompt=40, output=50)
    engine.step()
    engine.scheduler.distrust(broken)
    engine.scheduler.remove(broken)

    second = engine.ask("second", prompt=40)
    run(engine, second)

    assert second.num_cached_tokens == 0


def test_a_cache_that_is_off_finds_nothing() -> None:
    engine = FakeEngine()
    engine.scheduler.prefixes.is_on = False
    run(engine, engine.ask("first", prompt=40))

    second = engine.ask("second", prompt=40)
    plan = run(engine, second)[0]

    assert [(span.start, span.count) for span in plan.spans] == [(0, 40)]
    assert engine.scheduler.prefixes.num_queries == 0


def test_one_that_is_preempted_and_admitted_again_runs_once_in_the_step() -> None:
    """Three models of a mixture need blocks; the first victim is too small, and fits again."""
    engine = FakeEngine(num_blocks=1 + 3 + 8 + 1)
    base = WeightedModel(adapter=None, weight=1.0)
    other = WeightedModel(
        adapter=AdapterRef(adapter_id="b", version=1, digest="e", uri="none"), weight=1.0
    )
    mixture = (base, ADAPTER, other)
    submit(engine, body("m", 3, mixture=mixture, service_class="best_effort"), output=9)
    engine.step()
    long = engine.ask("u", prompt=30, output=5, tenant_id="u")
    short = engine.ask("v", prompt=2, output=5, tenant_id="v")
    engine.step()

    plan = engine.step()

    ids = [span.sequence_id for span in plan.spans]
    assert (long.num_preemptions, short.num_preemptions) == (1, 1)
    assert short in engine.scheduler.running, "it fits again at once"
    assert len(set(ids)) == len(ids)
    engine.scheduler.pool.check_conserved()
    while len(engine.ended) < 3:
        engine.step()
    engine.scheduler.pool.check_conserved()


def test_a_compressed_prompt_does_not_begin_on_blocks_that_it_cannot_keep() -> None:
    """It will need blocks of its own for all that it holds; those of others do not count."""
    engine = FakeEngine(num_blocks=1 + 12 + 4)
    first = engine.ask("first", prompt=40, output=20)
    engine.step()
    second = submit(engine, body("second", 44), output=3)
    second.cadence = KvCadence(44, 2)

    engine.step()
    assert second not in engine.scheduler.running
    run(engine, first)
    engine.step()

    assert second in engine.scheduler.running or second in engine.ended


def test_a_question_with_a_target_does_not_wait_for_a_prompt_without() -> None:
    engine = FakeEngine()
    engine.ask("decoding", prompt=4, output=100, tenant_id="other")
    engine.step()
    engine.ask("document", prompt=200, output=1, service_class="best_effort")
    engine.step()

    question = engine.ask("question", prompt=201, output=1)
    engine.step()

    assert question in engine.scheduler.running or question in engine.ended
