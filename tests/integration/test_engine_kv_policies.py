"""Requests whose prompts are compressed, in a real engine beside others that are not."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import torch

from scheduler.domain.errors import InvalidInput
from scheduler.domain.messages import Abort
from scheduler.domain.request import KvPolicyChoice
from tests.integration.compressed_requests import (
    BUDGET,
    LENGTH,
    NAMES,
    NUM_OUTPUT,
    NUM_SINKS,
    WINDOW,
    asked,
    assert_answered_alike,
    assert_members_are_compressed_each_for_itself,
    assert_preemption_changes_no_answer,
    assert_transformers_answers_so,
    poison_free_blocks,
    policy,
    reads_sums,
    scores,
)
from tests.integration.engine_driver import BASE, Script, TinyEngine, always, ended

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import Generate


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path)


@pytest.mark.parametrize("budget", [LENGTH, LENGTH + 100, 1.0])
def test_a_budget_of_the_whole_prompt_changes_no_bit(engine: TinyEngine, budget: float) -> None:
    plain = asked("plain")
    orders = [asked(name, kv_policy=policy(name, budget)) for name in NAMES]

    alone = engine.complete(plain)

    for order in orders:
        name = order.request.request_id
        script = engine.complete(order)
        assert script.tokens(name) == alone.tokens("plain")
        assert scores(script, name) == scores(alone, "plain")
        assert {frame.num_kept_tokens for frame in script.frames(name)} == {LENGTH}


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # plain torch, kernels
def test_tokens_are_those_of_transformers_with_the_dropped_ones_masked(
    tmp_path: Path, family: str
) -> None:
    engine = TinyEngine(tmp_path, family)
    script = engine.complete(asked("r", kv_policy=policy("streaming")))

    total = LENGTH + NUM_OUTPUT
    visible = torch.ones(total, total, dtype=torch.bool).tril()
    visible[LENGTH:, NUM_SINKS : LENGTH - BUDGET + NUM_SINKS] = False
    assert_transformers_answers_so(script, "r", family, tmp_path / "oracle", visible)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_company_and_training_change_nothing(tmp_path: Path, name: str) -> None:
    order = asked("r", kv_policy=policy(name, num_queries=16) if reads_sums(name) else policy(name))
    roomy = TinyEngine(tmp_path)
    small = TinyEngine(tmp_path, max_batched_tokens=17)
    job = small.job("job", small.data("train", Random(3)), n_epochs=1)
    company = [asked(f"c{i}", i + 1, policy(NAMES[i]) if i % 2 else None) for i in range(4)]

    alone = roomy.complete(order)
    beside = small.run(
        (always, [job, *company[:2], order, *company[2:]]), (ended(order, *company), [])
    )

    assert beside.tokens("r") == alone.tokens("r")
    assert scores(beside, "r") == pytest.approx(scores(alone, "r"), abs=2e-4)
    plain = roomy.complete(asked("plain"))
    assert scores(alone, "r")[:3] == scores(plain, "plain")[:3]  # the first token is exact
    assert scores(alone, "r")[3:] != scores(plain, "plain")[3:]
    assert alone.frames("r")[-1].num_kept_tokens == BUDGET
    for other in company:
        own = other.request.request_id
        assert beside.tokens(own) == roomy.complete(other).tokens(own)


def waves() -> list[Generate]:
    return [asked(f"w{i}", i, policy(NAMES[i % len(NAMES)]), max_tokens=40) for i in range(8)]


def test_preempted_requests_compress_again_and_answer_the_same(tmp_path: Path) -> None:
    assert_preemption_changes_no_answer(tmp_path, waves())


def test_freed_blocks_are_free_at_once_and_never_read_again(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, kv_cache_tokens=400)
    script = Script([(always, [*waves()])])
    loop = engine.start(script)
    script.entries.pop()  # the drain
    host, fewest = loop.hosts[BASE], {}

    while not ended(*waves())(script):
        loop.turn()
        poison_free_blocks(host)
        host.scheduler.pool.check_conserved()
        for sequence in host.scheduler.running:
            if sequence.layout is not None:
                fewest.setdefault(sequence.id, len(sequence.block_table))

    assert_answered_alike(script, TinyEngine(tmp_path).complete(*waves()), waves())
    size, uniform = host.runner.cache.block_size, LENGTH // host.runner.cache.block_size
    assert len(fewest) == len(waves())
    assert max(fewest.values()) <= BUDGET // size + 4 < uniform


def test_what_is_shared_is_read_but_not_changed(engine: TinyEngine) -> None:
    compressed = [asked(name, kv_policy=policy(name)) for name in ("snapkv", "h2o")]

    script = engine.run(
        (always, [asked("plain", max_tokens=60)]),
        (lambda s: len(s.tokens("plain")) > 2, [*compressed]),
        (lambda s: all(map(s.is_answered, ("snapkv", "h2o"))), [asked("again")]),
        (lambda s: all(map(s.is_answered, ("plain", "again"))), []),
    )

    cached = {name: script.frames(name)[0].num_cached_tokens for name in ("snapkv", "h2o", "again")}
    assert LENGTH - WINDOW - 4 < cached["snapkv"] <= LENGTH - WINDOW
    assert cached["h2o"] == 0  # it sums over all queries, and a hit has none
    assert LENGTH - 4 <= cached["again"] < LENGTH
    fresh = TinyEngine(engine.folder, prefix_caching=False)
    for order in [*compressed, asked("plain", max_tokens=60), asked("again")]:
        name = order.request.request_id
        assert script.tokens(name) == fresh.complete(order).tokens(name)


def test_members_of_a_mixture_are_compressed_each_for_itself(engine: TinyEngine) -> None:
    assert_members_are_compressed_each_for_itself(engine, asked("r", kv_policy=policy("adakv")))


def test_a_caller_may_leave_while_its_prompt_is_watched(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, max_batched_tokens=16)
    order, other = asked("r", kv_policy=policy("h2o")), asked("other", 1)

    script = engine.run(
        (always, [order, other]),
        (always, [Abort(request_id="r")]),
        (lambda s: s.is_answered("other"), []),
    )

    assert len(script.tokens("other")) == NUM_OUTPUT


@pytest.mark.parametrize(
    ("family", "choice", "sentence"),
    [
        ("qwen3", policy("best"), "Unknown KV policy 'best'; known: adakv"),
        ("qwen3", policy("snapkv", 0), "Option budget"),
        ("qwen3", policy("snapkv", WINDOW), "budget must hold the window and the sinks"),
        ("qwen3", policy("snapkv", color="red"), "Option color"),
        ("mistral_wide", policy("snapkv"), "sliding window"),
    ],
)
def test_what_cannot_be_compressed_is_refused_in_a_sentence(
    tmp_path: Path, family: str, choice: KvPolicyChoice, sentence: str
) -> None:
    script = TinyEngine(tmp_path, family).complete(asked("r", kv_policy=choice))

    (frame,) = script.frames("r")
    assert frame.error is not None
    assert sentence in frame.error


def test_a_workers_default_holds_for_requests_that_name_none(tmp_path: Path) -> None:
    setting = {"type": "snapkv", "budget": BUDGET, "window": WINDOW}
    engine = TinyEngine(tmp_path, kv_policy=setting)
    own = policy("snapkv", num_sinks=0)
    orders = [asked("plain"), asked("none", kv_policy=KvPolicyChoice(type="none", options={}))]

    script = engine.complete(*orders)

    compressed = TinyEngine(tmp_path).complete(asked("r", kv_policy=own))
    assert script.tokens("plain") == compressed.tokens("r")
    assert script.frames("plain")[-1].num_kept_tokens == BUDGET
    uncompressed = TinyEngine(tmp_path).complete(asked("r"))
    assert scores(script, "none") == pytest.approx(scores(uncompressed, "r"), abs=1e-4)
    assert script.frames("none")[-1].num_kept_tokens is None


def test_a_default_passes_models_by_that_cannot_be_compressed(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, "mistral_wide", kv_policy={"type": "snapkv", "budget": 0.5})

    script = engine.complete(asked("r"))

    assert script.frames("r")[-1].num_kept_tokens is None


def test_a_default_that_is_wrong_stops_the_worker(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, kv_policy={"type": "snapkv", "budget": 2})

    with pytest.raises(InvalidInput, match="budget must hold the window"):
        engine.complete(asked("r"))
