"""The prefix cache in the real engine: the same answers, less to compute, nobody else's K/V."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from scheduler.policy.blocks import EMPTY
from tests.integration.engine_driver import (
    BASE,
    Entry,
    Script,
    TinyEngine,
    always,
    ended,
    generate,
    prompt,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scheduler.domain.messages import Generate
    from scheduler.domain.plan import StepPlan
    from scheduler.domain.request import RequestBody, Sequence
    from workers.engine import EngineLoop
    from workers.model_host import ModelHost


def one_by_one(*waves: list[Generate]) -> list[Entry]:
    """Each wave once the one before it is answered, and the end."""
    entries: list[Entry] = [(always, [*waves[0]])]
    entries += [(ended(*before), [*wave]) for before, wave in pairwise(waves)]
    return [*entries, (ended(*waves[-1]), [])]


def cached(script: Script, request_id: str) -> int:
    return script.frames(request_id)[-1].num_cached_tokens


def scores(script: Script, request_id: str) -> list[float]:
    """Log-probabilities of an answer's tokens."""
    return [score.logprob for frame in script.frames(request_id) for score in frame.logprobs or ()]


def turns(engine: TinyEngine, folder: Path | None, tenant_id: str, name: str) -> list[Generate]:
    """A long prompt, the same with another end, and what a tenant says after the first answer."""
    text = prompt(1, 75)
    (alone,) = [generate("r", text, folder, max_tokens=12)]
    answer = engine.run(*one_by_one([alone])).tokens("r")
    prompts = [text, text[:70] + prompt(2, 9), text + answer + prompt(3, 5)]
    return [
        generate(f"{name}{i}", tokens, folder, tenant_id=tenant_id, max_tokens=12, num_logprobs=3)
        for i, tokens in enumerate(prompts)
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("rank", [None, 8])
def test_answers_are_the_same_with_and_without_the_cache(
    tmp_path: Path, dtype: str, tolerance: float, rank: int | None
) -> None:
    engine = TinyEngine(tmp_path, dtype=dtype)
    plain = TinyEngine(tmp_path, dtype=dtype, prefix_caching=False)
    folder = None if rank is None else engine.adapter("a", rank, ("q_proj", "v_proj"))
    orders = turns(plain, folder, "tenant", "r")

    script = engine.run(*one_by_one(*([order] for order in orders)))
    without = plain.run(*one_by_one(*([order] for order in orders)))

    assert [cached(script, f"r{i}") for i in range(3)] == [0, 68, 84]  # 75 + 12 - 1 were computed
    for name in ("r0", "r1", "r2"):
        assert cached(without, name) == 0
        assert script.tokens(name) == without.tokens(name)
        assert len(scores(script, name)) == 12
    for name in ("r0", "r1"):  # prompts: a row is the same in any company
        assert scores(script, name) == scores(without, name)
    # A token that was decoded adds up its attention in another order than one of a prompt.
    assert scores(script, "r2") == pytest.approx(scores(without, "r2"), abs=tolerance)


def test_a_prompt_that_is_known_is_read_from_its_last_block_on(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    script = Script(
        one_by_one(*([generate(f"r{i}", prompt(1, 200), max_tokens=4)] for i in range(2)))
    )
    loop = engine.start(script)

    engine.finish(loop, script)

    assert [s.prefill_tokens for s in loop.meter.steps if s.prefill_tokens] == [200, 4]


def test_many_answers_to_one_prompt_compute_it_once(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    order = generate("r", prompt(1, 202), n=4, max_tokens=4, temperature=1.0, seed=1)
    plain = TinyEngine(tmp_path, prefix_caching=False)
    script = Script(one_by_one([order]))
    loop = engine.start(script)

    engine.finish(loop, script)
    expected = plain.run(*one_by_one([order]))

    assert sum(step.prefill_tokens for step in loop.meter.steps) == 202 + 3 * 2
    assert cached(script, "r") == 0
    for index in range(4):
        assert script.tokens("r", index) == expected.tokens("r", index)


def test_tenants_with_one_prompt_share_nothing(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    folder = engine.adapter("a", 4, ("q_proj", "v_proj"))
    other = engine.adapter("b", 4, ("q_proj", "v_proj"), seed=9)
    text = prompt(1, 40)
    first = [
        generate("base", text, tenant_id="a"),
        generate("stranger", text, tenant_id="b"),
        generate("adapter", text, folder, tenant_id="a"),
    ]
    after = [
        generate("third-tenant", text, tenant_id="c"),
        generate("next-version", text, other, tenant_id="a"),
        generate("adapter-of-b", text, folder, tenant_id="b"),
    ]
    again = [order.model_copy(update={"request": _renamed(order)}) for order in (*first, *after)]

    script = Script(one_by_one(first, after, again))
    loop = engine.start(script)
    tables = watch_tables(loop)
    engine.finish(loop, script)

    names = [order.request.request_id for order in (*first, *after)]
    assert [cached(script, name) for name in names] == [0] * 6
    assert [cached(script, f"{name}-again") for name in names] == [36] * 6
    shared = [tables[f"{name}/0"] & tables[f"{name}-again/0"] for name in names]
    assert all(len(blocks) >= 9 for blocks in shared)
    assert sum(map(len, shared)) == len(set.union(*shared))


def _renamed(order: Generate) -> RequestBody:
    name = f"{order.request.request_id}-again"
    return order.request.model_copy(update={"request_id": name})


def watch_tables(loop: EngineLoop) -> dict[str, set[int]]:
    """Every block that a sequence ever held when a step began; ample room: none is used twice."""
    tables: dict[str, set[int]] = {}
    scheduler = loop.hosts[BASE].scheduler
    schedule = scheduler.schedule

    def watched(now_s: float, admit: Callable[[Sequence], bool]) -> StepPlan:
        plan = schedule(now_s, admit)
        for sequence in scheduler.running:
            tables.setdefault(sequence.id, set()).update(sequence.block_table)
        return plan

    scheduler.schedule = watched
    return tables


def test_nothing_of_a_freed_block_reaches_an_answer_however_often_blocks_change_hands(
    tmp_path: Path,
) -> None:
    roomy = TinyEngine(tmp_path, prefix_caching=False)
    folder = roomy.adapter("a", 4, ("q_proj", "v_proj"))
    waves = [
        [
            generate(f"r{wave}-{i}", prompt(i % 2, 20 + 7 * i) + prompt(wave, 6),
                     folder if i == 3 else None, tenant_id=f"t{i // 2}", n=1 + i % 2,
                     max_tokens=16, temperature=1.0, seed=i)
            for i in range(4)
        ]
        for wave in range(4)
    ]  # fmt: skip
    expected = roomy.run(*one_by_one(*waves))

    script = Script(one_by_one(*waves))
    tight = TinyEngine(tmp_path, kv_cache_tokens=160)
    loop = tight.start(script)
    poison_what_is_empty(loop)
    tight.finish(loop, script)

    scheduler = loop.hosts[BASE].scheduler
    assert scheduler.num_preemptions > 0
    assert scheduler.prefixes.num_hits > 0
    for order in (order for wave in waves for order in wave):
        name = order.request.request_id
        for index in range(order.request.n):
            assert script.tokens(name, index) == expected.tokens(name, index)


def poison_what_is_empty(loop: EngineLoop) -> None:
    """Before every step, write NaN to all blocks that nobody holds or may find."""
    host = loop.hosts[BASE]
    step = loop.step

    def poisoned(stepping: ModelHost) -> None:
        pool = host.scheduler.pool
        empty = [block for block, state in enumerate(pool._map) if state == EMPTY[0]]
        host.runner.cache.storage[empty] = float("nan")
        step(stepping)

    loop.step = poisoned


def test_an_answer_that_is_not_finite_leaves_nothing_behind(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    text = prompt(1, 40)
    script = Script(one_by_one([generate("r0", text)], [generate("r1", text)]))
    loop = engine.start(script)
    weights = loop.hosts[BASE].runner.decoder.weights
    whole = weights.embedding.clone()
    weights.embedding[text[3]] = float("nan")
    script.entries[1] = (
        lambda s: s.is_answered("r0") and weights.embedding.copy_(whole) is not None,
        script.entries[1][1],
    )

    engine.finish(loop, script)

    assert script.frames("r0")[-1].error_code == "not_finite"
    assert cached(script, "r1") == 0
    assert len(script.tokens("r1")) == 8


def test_the_engine_reports_tokens_asked_for_and_found(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    orders = [generate(f"r{i}", prompt(1, 50), max_tokens=4) for i in range(3)]

    script = Script(one_by_one(*([order] for order in orders)))
    loop = engine.start(script)
    engine.finish(loop, script)

    stats = loop.meter.report([*loop.hosts.values()])
    assert [cached(script, f"r{i}") for i in range(3)] == [0, 48, 48]
    assert (stats.prefix_queries, stats.prefix_hits) == (150, 96)
