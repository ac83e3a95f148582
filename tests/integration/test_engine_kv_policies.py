"""Requests whose prompts are compressed, in a real engine beside others that are not."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

import workers.kv_policies  # noqa: F401
from scheduler.domain.errors import InvalidInput
from scheduler.domain.messages import Abort
from scheduler.domain.request import KvPolicyChoice, WeightedModel
from tests.integration.engine_driver import (
    BASE,
    Script,
    TinyEngine,
    adapter_ref,
    always,
    generate,
)
from tests.unit.workers.tiny_models import VOCAB_SIZE, save_oracle
from workers.kv_policy import KV_POLICIES

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import Generate
    from workers.model_host import ModelHost

NAMES = KV_POLICIES.names()
LENGTH, WINDOW, NUM_SINKS, BUDGET = 60, 6, 2, 20
NUM_OUTPUT = 12


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path)


def policy(name: str, budget: float = BUDGET, **more: Any) -> KvPolicyChoice:
    options = {"budget": budget, "window": WINDOW, "num_sinks": NUM_SINKS} | more
    return KvPolicyChoice(type=name, options=options)


def prompt(seed: int, length: int = LENGTH) -> list[int]:
    random = Random(seed)
    return [random.randrange(3, VOCAB_SIZE) for _ in range(length)]


def asked(
    name: str, seed: int = 0, kv_policy: KvPolicyChoice | None = None, **how: Any
) -> Generate:
    how = {"max_tokens": NUM_OUTPUT, "num_logprobs": 2} | how
    return generate(name, prompt(seed), kv_policy=kv_policy, **how)


def all_of(orders: list[Generate]) -> tuple[Any, list[Generate]]:
    """The entry that waits for every answer."""
    names = [order.request.request_id for order in orders]
    return (lambda s: all(map(s.is_answered, names)), [])


def serve(engine: TinyEngine, *orders: Generate) -> Script:
    return engine.run((always, [*orders]), all_of([*orders]))


def scores(script: Script, name: str) -> list[float]:
    lines = [line for frame in script.frames(name) for line in frame.logprobs or ()]
    return [number for line in lines for number in (line.logprob, *line.top_logprobs)]


@pytest.mark.parametrize("budget", [LENGTH, LENGTH + 100, 1.0])
def test_a_budget_of_the_whole_prompt_changes_no_bit(engine: TinyEngine, budget: float) -> None:
    plain = asked("plain")
    orders = [asked(name, kv_policy=policy(name, budget)) for name in NAMES]

    alone = serve(engine, plain)

    for order in orders:
        name = order.request.request_id
        script = serve(engine, order)
        assert script.tokens(name) == alone.tokens("plain")
        assert scores(script, name) == scores(alone, "plain")
        assert {frame.num_kept_tokens for frame in script.frames(name)} == {LENGTH}


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # plain torch, kernels
def test_tokens_are_those_of_transformers_with_the_dropped_ones_masked(
    tmp_path: Path, family: str
) -> None:
    engine = TinyEngine(tmp_path, family)
    script = serve(engine, asked("r", kv_policy=policy("streaming")))

    tokens = script.tokens("r")
    kept = [*range(NUM_SINKS), *range(LENGTH - BUDGET + NUM_SINKS, LENGTH)]
    token_ids = torch.tensor([prompt(0) + tokens])
    visible = torch.ones(token_ids.shape[1], token_ids.shape[1], dtype=torch.bool).tril()
    visible[LENGTH:, [i for i in range(LENGTH) if i not in kept]] = False
    mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    oracle = save_oracle(family, tmp_path / "oracle")
    with torch.no_grad():
        logits = oracle(token_ids, attention_mask=mask[None, None]).logits[0]
    lines = logits[LENGTH - 1 : -1].log_softmax(-1)
    assert tokens == lines.argmax(-1).tolist()
    own = [frame.logprobs[0].logprob for frame in script.frames("r") if frame.logprobs]
    assert own == pytest.approx(lines.max(-1).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_company_and_training_change_nothing(tmp_path: Path, name: str) -> None:
    order = asked("r", kv_policy=policy(name, num_queries=16) if reads_sums(name) else policy(name))
    roomy = TinyEngine(tmp_path)
    small = TinyEngine(tmp_path, max_batched_tokens=17)
    job = small.job("job", small.data("train", Random(3)), n_epochs=1)
    company = [asked(f"c{i}", i + 1, policy(NAMES[i]) if i % 2 else None) for i in range(4)]

    alone = serve(roomy, order)
    mixed = small.run((always, [job, *company[:2], order, *company[2:]]), all_of([order, *company]))

    assert mixed.tokens("r") == alone.tokens("r")
    assert scores(mixed, "r") == pytest.approx(scores(alone, "r"), abs=2e-4)
    plain = serve(roomy, asked("plain"))
    assert scores(alone, "r")[:3] == scores(plain, "plain")[:3]  # the first token is exact
    assert scores(alone, "r")[3:] != scores(plain, "plain")[3:]
    assert alone.frames("r")[-1].num_kept_tokens == BUDGET
    for other in company:
        own = other.request.request_id
        assert mixed.tokens(own) == serve(roomy, other).tokens(own)


def reads_sums(name: str) -> bool:
    return "num_queries" in KV_POLICIES[name].Config.model_fields


def waves() -> list[Generate]:
    return [asked(f"w{i}", i, policy(NAMES[i % len(NAMES)]), max_tokens=40) for i in range(8)]


def test_preempted_requests_compress_again_and_answer_the_same(tmp_path: Path) -> None:
    tight = TinyEngine(tmp_path, kv_cache_tokens=192)
    script = Script([(always, [*waves()]), all_of(waves())])
    loop = tight.start(script)
    tight.finish(loop, script)

    roomy = serve(TinyEngine(tmp_path), *waves())

    assert loop.hosts[BASE].scheduler.num_preemptions > 0
    for order in waves():
        name = order.request.request_id
        assert script.tokens(name) == roomy.tokens(name)


def poison_free_blocks(host: ModelHost) -> None:
    held = {block for sequence in host.scheduler.running for block in sequence.block_table}
    free = [b for b in range(1, host.runner.cache.num_blocks) if b not in held]
    host.runner.cache.storage[free] = float("nan")


def test_freed_blocks_are_free_at_once_and_never_read_again(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, kv_cache_tokens=400)
    script = Script([(always, [*waves()])])
    loop = engine.start(script)
    script.entries.pop()  # the drain
    host, fewest = loop.hosts[BASE], {}

    while not all(script.is_answered(order.request.request_id) for order in waves()):
        loop.turn()
        poison_free_blocks(host)
        host.scheduler.pool.check_conserved()
        for sequence in host.scheduler.running:
            if sequence.layout is not None:
                fewest.setdefault(sequence.id, len(sequence.block_table))

    roomy = serve(TinyEngine(tmp_path), *waves())
    for order in waves():
        name = order.request.request_id
        assert script.tokens(name) == roomy.tokens(name)
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
        assert script.tokens(name) == serve(fresh, order).tokens(name)


def test_members_of_a_mixture_are_compressed_each_for_itself(engine: TinyEngine) -> None:
    folder = engine.adapter("a", 4, ("q_proj", "k_proj", "v_proj"))
    ref = adapter_ref(folder)
    order = asked("r", kv_policy=policy("adakv"))
    parts = (WeightedModel(adapter=None, weight=0.4), WeightedModel(adapter=ref, weight=0.6))
    body = order.request.model_copy(update={"mixture": parts})
    order = order.model_copy(update={"request": body, "adapter_dirs": {ref.digest: str(folder)}})

    tight = TinyEngine(engine.folder, max_batched_tokens=32)

    assert serve(tight, order).tokens("r") == serve(engine, order).tokens("r")


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
    script = serve(TinyEngine(tmp_path, family), asked("r", kv_policy=choice))

    (frame,) = script.frames("r")
    assert frame.error is not None
    assert sentence in frame.error


def test_a_workers_default_holds_for_requests_that_name_none(tmp_path: Path) -> None:
    setting = {"type": "snapkv", "budget": BUDGET, "window": WINDOW}
    engine = TinyEngine(tmp_path, kv_policy=setting)
    own = policy("snapkv", num_sinks=0)
    orders = [asked("plain"), asked("none", kv_policy=KvPolicyChoice(type="none", options={}))]

    script = serve(engine, *orders)

    compressed = serve(TinyEngine(tmp_path), asked("r", kv_policy=own))
    assert script.tokens("plain") == compressed.tokens("r")
    assert script.frames("plain")[-1].num_kept_tokens == BUDGET
    uncompressed = serve(TinyEngine(tmp_path), asked("r"))
    assert scores(script, "none") == pytest.approx(scores(uncompressed, "r"), abs=1e-4)
    assert script.frames("none")[-1].num_kept_tokens is None


def test_a_default_passes_models_by_that_cannot_be_compressed(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, "mistral_wide", kv_policy={"type": "snapkv", "budget": 0.5})

    script = serve(engine, asked("r"))

    assert script.frames("r")[-1].num_kept_tokens is None


def test_a_default_that_is_wrong_stops_the_worker(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, kv_policy={"type": "snapkv", "budget": 2})

    with pytest.raises(InvalidInput, match="budget must hold the window"):
        serve(engine, asked("r"))
