"""Answers whose K/V are compressed as they grow, in a real engine beside others that are not."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scheduler.domain.request import BegunAnswer, KvPolicyChoice
from tests.integration.compressed_requests import (
    BUDGET,
    LENGTH,
    NAMES,
    NUM_SINKS,
    asked,
    assert_answered_alike,
    assert_members_are_compressed_each_for_itself,
    assert_preemption_changes_no_answer,
    assert_transformers_answers_so,
    last_counts,
    poison_free_blocks,
    policy,
    reads_sums,
    scores,
)
from tests.integration.engine_driver import BASE, Script, TinyEngine, always, ended
from workers.head_pages import HeadPages

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import Generate
    from scheduler.domain.request import Sequence

INTERVAL = 16
NUM_OUTPUT = 60  # three more compressions, and some tokens
CUTS = (1, 15, 16, 17, 40, 59)
UNIFORM = ("snapkv", "h2o", "ems", "streaming", "keydiff", "elastic")


def growing(name: str, **more: Any) -> KvPolicyChoice:
    sums = {"num_queries": 16} if reads_sums(name) else {}
    return policy(name, **{"decode_interval": INTERVAL, **sums, **more})


def long(name: str, seed: int, kind: str, **more: Any) -> Generate:
    return asked(name, seed, growing(kind), **{"max_tokens": NUM_OUTPUT, **more})


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # plain torch, kernels
def test_tokens_are_those_of_transformers_with_the_dropped_ones_masked(
    tmp_path: Path, family: str
) -> None:
    script = TinyEngine(tmp_path, family).complete(long("r", 0, "streaming"))

    total = LENGTH + NUM_OUTPUT
    visible = torch.ones(total, total, dtype=torch.bool).tril()
    for boundary in range(LENGTH, total, INTERVAL):
        visible[boundary:, NUM_SINKS : boundary - BUDGET + NUM_SINKS] = False
    assert_transformers_answers_so(script, "r", family, tmp_path / "oracle", visible)


@pytest.mark.parametrize("budget", [LENGTH + NUM_OUTPUT, 1.0])
def test_a_budget_of_the_whole_answer_changes_no_bit(engine: TinyEngine, budget: float) -> None:
    alone = engine.complete(asked("plain", max_tokens=NUM_OUTPUT))

    orders = [asked(n, kv_policy=growing(n, budget=budget), max_tokens=NUM_OUTPUT) for n in NAMES]

    script = engine.complete(*orders)

    for name in NAMES:
        assert script.tokens(name) == alone.tokens("plain")
        assert scores(script, name) == scores(alone, "plain")
        assert last_counts(script, name) == (LENGTH, 0)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_company_and_training_change_nothing(tmp_path: Path, name: str) -> None:
    order = long("r", 0, name)
    small = TinyEngine(tmp_path, max_batched_tokens=17)
    job = small.job("job", small.data("train", Random(3)), n_epochs=1)
    kinds = [NAMES[0], None, NAMES[3], None]
    company = [asked(f"c{i}", i + 1, kind and growing(kind)) for i, kind in enumerate(kinds)]

    alone = TinyEngine(tmp_path).complete(order)
    beside = small.run(
        (always, [job, *company[:2], order, *company[2:]]), (ended(order, *company), [])
    )

    assert beside.tokens("r") == alone.tokens("r")
    assert scores(beside, "r") == pytest.approx(scores(alone, "r"), abs=2e-4)
    last = LENGTH + (NUM_OUTPUT - 1) // INTERVAL * INTERVAL
    assert last_counts(alone, "r") == (BUDGET, last - BUDGET)
    once = TinyEngine(tmp_path).complete(asked("r", kv_policy=policy(name), max_tokens=NUM_OUTPUT))
    compared = slice(0, 3 * INTERVAL)  # three numbers a token: the same up to the second time
    if not reads_sums(name):
        assert scores(alone, "r")[compared] == pytest.approx(scores(once, "r")[compared], abs=1e-4)
    assert scores(alone, "r") != scores(once, "r")


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_goes_on_elsewhere_as_it_would_have(engine: TinyEngine, name: str) -> None:
    order = long("r", 5, name)
    whole = engine.complete(order)
    tokens, wanted = whole.tokens("r"), scores(whole, "r")
    rests = []
    for cut in CUTS:
        begun = (BegunAnswer(index=0, token_ids=tuple(tokens[:cut])),)
        body = order.request.model_copy(update={"request_id": f"r-{cut}", "begun": begun})
        rests.append(order.model_copy(update={"request": body}))

    script = TinyEngine(engine.folder, max_batched_tokens=64).complete(*rests)

    for cut in CUTS:
        assert script.tokens(f"r-{cut}") == tokens[cut:]
        assert scores(script, f"r-{cut}") == pytest.approx(wanted[3 * cut :], abs=2e-4)
        assert last_counts(script, f"r-{cut}") == last_counts(whole, "r")


def waves() -> list[Generate]:
    return [long(f"w{i}", i, NAMES[i % len(NAMES)]) for i in range(len(NAMES))]


def test_preempted_requests_compress_at_the_same_tokens_and_answer_the_same(
    tmp_path: Path,
) -> None:
    assert_preemption_changes_no_answer(tmp_path, waves())


def most_slots(sequence: Sequence) -> int:
    """Slots of the head that holds most."""
    layout = sequence.layout
    if layout is None:
        return sequence.num_computed_tokens
    assert isinstance(layout, HeadPages)
    return int(layout.lengths(sequence.num_computed_tokens).max())


def test_freed_blocks_are_free_at_once_and_never_read_again(tmp_path: Path) -> None:
    script = Script([(always, [*waves()])])
    loop = TinyEngine(tmp_path, kv_cache_tokens=400).start(script)
    script.entries.pop()  # the drain
    host = loop.hosts[BASE]
    size = host.runner.cache.block_size
    compressed: set[str] = set()

    while not ended(*waves())(script):
        loop.turn()
        poison_free_blocks(host)
        host.scheduler.pool.check_conserved()
        for sequence in host.scheduler.running:
            if sequence.layout is not None:
                compressed.add(sequence.id)
                assert len(sequence.block_table) <= (BUDGET + INTERVAL) // size + 4

    assert len(compressed) == len(waves())
    assert_answered_alike(script, TinyEngine(tmp_path).complete(*waves()), waves())


@pytest.mark.parametrize("name", UNIFORM)
def test_a_long_answer_never_holds_more_than_its_budget_and_an_interval(
    tmp_path: Path, name: str
) -> None:
    order = long("r", 7, name, max_tokens=180)
    script = Script([(always, [order])])
    loop = TinyEngine(tmp_path).start(script)
    script.entries.pop()  # the drain
    held: list[int] = []

    while not script.is_answered("r"):
        loop.turn()
        held += [most_slots(s) for s in loop.hosts[BASE].scheduler.running if s.layout is not None]

    assert (min(held), max(held)) == (BUDGET, BUDGET + INTERVAL - 1)
    assert len(script.tokens("r")) == 180


def test_a_short_prompts_answer_is_compressed_once_it_is_long(engine: TinyEngine) -> None:
    orders = [
        asked(kind, kv_policy=growing(kind, budget=70), max_tokens=NUM_OUTPUT)
        for kind in ("snapkv", "h2o", "adakv", "ems")
    ]

    script = engine.run(
        (always, [asked("plain", max_tokens=1)]),
        (lambda s: s.is_answered("plain"), [*orders]),
        (ended(*orders), []),
    )

    whole = engine.complete(asked("plain", max_tokens=NUM_OUTPUT))
    for order in orders:
        name = order.request.request_id
        until = 3 * (INTERVAL + 1)  # the token drawn at a compression still sees all
        assert scores(script, name)[:until] == pytest.approx(
            scores(whole, "plain")[:until], abs=1e-4
        )
        assert scores(script, name) != scores(whole, "plain")
        assert last_counts(script, name) == (70, LENGTH + 3 * INTERVAL - 70)
    cached = {kind: script.frames(kind)[0].num_cached_tokens for kind in ("snapkv", "h2o")}
    assert cached["snapkv"] > LENGTH - 8  # only the window before a compression is watched
    assert cached["h2o"] == 0


def test_what_is_shared_is_read_but_not_changed(engine: TinyEngine) -> None:
    orders = [long(name, 0, name) for name in ("snapkv", "ems")]
    plain = asked("plain", max_tokens=NUM_OUTPUT)

    script = engine.run(
        (always, [plain]),
        (lambda s: len(s.tokens("plain")) > 2, [*orders]),
        (ended(plain, *orders), []),
    )

    fresh = TinyEngine(engine.folder, prefix_caching=False)
    for order in (plain, *orders):
        name = order.request.request_id
        assert script.tokens(name) == fresh.complete(order).tokens(name)


def test_members_of_a_mixture_are_compressed_each_for_itself(engine: TinyEngine) -> None:
    assert_members_are_compressed_each_for_itself(engine, long("r", 0, "adakv"))


def test_an_interval_that_is_too_short_is_refused_in_a_sentence(engine: TinyEngine) -> None:
    script = engine.complete(asked("r", kv_policy=growing("snapkv", window=17)))

    (frame,) = script.frames("r")
    assert frame.error is not None
    assert "decode_interval must hold the window" in frame.error
