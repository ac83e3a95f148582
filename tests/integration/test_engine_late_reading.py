"""Steps issued before the tokens of the last one are read, as on a card: nobody can tell."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scheduler.domain.messages import Abort
from scheduler.domain.request import FinishReason, KvPolicyChoice
from tests.integration.engine_driver import BASE, Script, TinyEngine, always, generate
from tests.unit.workers.tiny_models import VOCAB_SIZE
from workers.engine import EngineLoop
from workers.flight import Flight
from workers.model import MODULE_PATHS

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import Generate, ToEngine, TokenFrame
    from scheduler.domain.plan import StepPlan
    from scheduler.policy.pack_cursor import Unit
    from workers.active_job import ActiveJob
    from workers.batch_builder import InferenceRow
    from workers.model_host import ModelHost

SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "seed": 4},
    {"num_logprobs": 3},
    {"temperature": 1.0, "seed": 5, "stop_token_ids": tuple(range(0, VOCAB_SIZE, 7))},
    {"logit_bias": {5: 2.0}, "prompt_logprobs": True, "num_logprobs": 0},
    {"frequency_penalty": 1.0, "presence_penalty": 0.5},
    {"max_tokens": 1},
    {"max_tokens": 0, "prompt_logprobs": True},
]
GROWING = KvPolicyChoice(type="h2o", options={"budget": 12, "window": 4, "decode_interval": 16})


def requests(engine: TinyEngine) -> list[Generate]:
    """Adapters, several answers, all kinds of sampling, K/V policies, prompts of many lengths."""
    random = Random(0)
    folders = [
        None,
        engine.adapter("a", 4, tuple(MODULE_PATHS)),
        engine.adapter("b", 2, ("q_proj",)),
    ]
    orders = []
    for i in range(18):
        prompt = [random.randrange(VOCAB_SIZE) for _ in range(random.randint(1, 40))]
        sampling = {"max_tokens": random.randint(2, 30)} | SAMPLING[i % len(SAMPLING)]
        how = {"n": 1 + i % 2, "kv_policy": GROWING if i % 5 == 0 else None}
        orders.append(generate(f"r{i}", prompt, folders[i % 3], **how, **sampling))
    return orders


def play(
    engine: TinyEngine, orders: list[ToEngine], names: dict[str, int], *, late: bool
) -> Script:
    script = Script([(always, orders)])
    script.entries.append((lambda s: all(s.is_answered(*pair) for pair in names.items()), []))
    loop = engine.start(script)
    loop.hosts[BASE].runner.reads_late = late
    engine.finish(loop, script)
    return script


def said(frames: list[TokenFrame]) -> dict[int, list[Any]]:
    """What the caller hears, answer by answer."""
    heard: dict[int, list[Any]] = {}
    for frame in frames:
        scores = [score and (score.rank, score.top_ids) for score in frame.logprobs or ()]
        prompt = [score and score.rank for score in frame.prompt_logprobs or ()]
        line = frame.token_ids, frame.finish_reason, scores, prompt
        heard.setdefault(frame.index, []).append(line)
    return heard


@pytest.mark.parametrize("kv_cache_tokens", [4096, 192])
def test_answers_are_those_of_an_engine_that_reads_at_once(
    tmp_path: Path, kv_cache_tokens: int
) -> None:
    engine = TinyEngine(tmp_path, kv_cache_tokens=kv_cache_tokens, max_num_sequences=12)
    orders = requests(engine)
    names = {order.request.request_id: order.request.n for order in orders}

    at_once = play(engine, [*orders], names, late=False)
    late = play(engine, [*orders], names, late=True)

    for name in names:
        assert said(late.frames(name)) == said(at_once.frames(name))


def test_a_job_beside_them_changes_nothing(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    orders = requests(engine)
    names = {order.request.request_id: order.request.n for order in orders}
    job = engine.job("job", engine.data("train", Random(1)), n_epochs=30)

    alone = play(engine, [*orders], names, late=True)
    beside = play(engine, [job, *orders], names, late=True)

    for name in names:
        assert said(beside.frames(name)) == said(alone.frames(name))
    assert beside.steps("job")


def test_a_second_turn_finds_the_answer_of_the_first(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    script = Script([(always, [generate("first", list(range(8)), max_tokens=16)])])
    loop = engine.start(script)
    loop.hosts[BASE].runner.reads_late = True
    ended = script.entries.pop()

    orders: list[ToEngine] = []

    def is_answered(script: Script) -> bool:
        if script.is_answered("first"):
            prompt = [*range(8), *script.tokens("first"), 5]
            orders.append(generate("second", prompt, max_tokens=2))
        return bool(orders)

    script.entries += [
        (is_answered, orders),
        (lambda s: s.is_answered("second"), []),
        ended,
    ]
    engine.finish(loop, script)

    assert script.frames("second")[-1].num_cached_tokens == 20


def test_whoever_leaves_while_a_token_is_on_its_way_hears_no_more(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    script = Script(
        [
            (always, [generate("gone", [1, 2], max_tokens=500), generate("stays", [3], n=2)]),
            (lambda s: len(s.tokens("gone")) >= 3, [Abort(request_id="gone")]),
            (lambda s: s.is_answered("stays", 2), []),
        ]
    )
    loop = engine.start(script)
    loop.hosts[BASE].runner.reads_late = True

    engine.finish(loop, script)

    assert len(script.tokens("gone")) < 10
    assert not script.is_answered("gone")


def test_a_step_is_issued_while_the_one_before_is_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops lag by one step and no more, and an end that counts tell wastes none."""
    engine = TinyEngine(tmp_path)
    spans: list[list[str]] = []
    unread: list[bool] = []

    def watched(plan: StepPlan, rows: list[InferenceRow], *rest: Any) -> Flight:
        spans.append([span.sequence_id for span in plan.spans])
        unread.append(any(row.sequence.has_unread for row in rows))
        return Flight(plan, rows, *rest)

    monkeypatch.setattr("workers.engine.Flight", watched)
    free = play(engine, [generate("free", [3, 4], max_tokens=20)], {"free": 1}, late=True)
    num_steps, num_unread = len(spans), sum(unread)
    stop = free.tokens("free")[9]
    first = free.tokens("free").index(stop)
    spans.clear()
    asked = generate("stops", [3, 4], max_tokens=20, stop_token_ids=(stop,))

    stopped = play(engine, [asked], {"stops": 1}, late=True)

    assert (num_steps, num_unread) == (20, 19)
    assert stopped.tokens("stops") == free.tokens("free")[: first + 1]
    assert stopped.frames("stops")[-1].finish_reason is FinishReason.STOP
    assert len(spans) == first + 2


@pytest.mark.gpu
def test_a_card_is_waited_for_only_where_tokens_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TinyEngine(tmp_path, device="cuda:0")
    launch = EngineLoop._launch
    names = [f"r{i}" for i in range(8)]  # each kind of sampling twice, the first time to warm up
    orders = [generate(n, [3, 4], max_tokens=40, **SAMPLING[i % 4]) for i, n in enumerate(names)]
    script = Script([(always, orders[:1])])
    for name, order in zip(names, orders[1:], strict=False):
        script.entries.append((partial(Script.is_answered, request_id=name), [order]))
    script.entries.append((lambda s: s.is_answered(names[-1]), []))

    def launch_without_waiting(loop: EngineLoop, host: ModelHost, plan: StepPlan) -> Flight:
        torch.cuda.set_sync_debug_mode("error" if script.is_answered(names[3]) else "default")
        try:
            return launch(loop, host, plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(EngineLoop, "_launch", launch_without_waiting)
    loop = engine.start(script)

    engine.finish(loop, script)

    assert all(len(script.tokens(name)) == 40 for name in names)


@pytest.mark.gpu
def test_units_of_training_are_issued_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TinyEngine(tmp_path, device="cuda:0")
    script = Script(
        [
            (always, [engine.job("job", engine.data("train", Random(1)))]),
            (lambda s: s.has_ended("job"), []),
        ]
    )
    loop = engine.start(script)
    trainer = loop.hosts[BASE].trainer

    run = trainer.units.run

    def run_strictly(active: ActiveJob, unit: Unit) -> None:
        is_warm = len(script.steps("job")) > 2
        torch.cuda.set_sync_debug_mode("error" if is_warm else "default")
        try:
            run(active, unit)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(trainer.units, "run", run_strictly)

    engine.finish(loop, script)

    assert len(script.steps("job")) == 6
