"""How answers end, and what they tell, in the real engine loop."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scheduler.domain.messages import (
    Replay,
)
from scheduler.domain.request import FinishReason
from tests.integration.engine_driver import (
    BASE,
    REPLY_TO,
    Script,
    TinyEngine,
    always,
    ended,
    generate,
    prompt,
    turned,
)
from tests.unit.workers.packed_run import PackedRun

if TYPE_CHECKING:
    from pathlib import Path


EOS = 2  # of every tiny model


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path)


def test_max_tokens_bounds_the_answer(engine: TinyEngine) -> None:
    orders = [generate(f"r{m}", prompt(1, 5), max_tokens=m) for m in (0, 1, 9)]

    script = engine.complete(*orders)

    for count in (0, 1, 9):
        assert len(script.tokens(f"r{count}")) == count
        assert script.frames(f"r{count}")[-1].finish_reason is FinishReason.LENGTH
    assert script.tokens("r9")[:1] == script.tokens("r1")


def test_an_answer_ends_where_the_context_does(engine: TinyEngine) -> None:
    script = engine.complete(
        generate("r0", prompt(1, 250), max_tokens=100),
        generate("r1", prompt(1, 256), max_tokens=100),
        generate("r2", prompt(1, 257), max_tokens=100),
    )

    assert len(script.tokens("r0")) == 6
    assert len(script.tokens("r1")) == 1
    assert script.frames("r0")[-1].finish_reason is FinishReason.LENGTH
    assert script.frames("r2")[-1].error_code == "context_length_exceeded"


def test_an_answer_ends_where_the_kv_cache_does(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, kv_cache_tokens=64)

    script = engine.complete(
        generate("r0", prompt(1, 40), max_tokens=200),
        generate("r1", prompt(2, 10), max_tokens=200),
        generate("r2", prompt(2, 64), max_tokens=200),
    )

    assert len(script.tokens("r0")) + 40 == 63
    assert len(script.tokens("r1")) + 10 == 63
    assert script.frames("r2")[-1].error_code == "context_length_exceeded"


def test_stop_tokens_and_eos_end_an_answer_and_ignore_eos_ignores_only_eos(
    engine: TinyEngine,
) -> None:
    free = engine.complete(generate("r", prompt(1, 5), max_tokens=10)).tokens("r")
    stop = next(t for t in free[2:] if t not in free[:2])
    eos: dict[str, Any] = {"logit_bias": {EOS: 100}, "max_tokens": 4}

    script = engine.complete(
        generate("r0", prompt(1, 5), max_tokens=10, stop_token_ids=(stop,)),
        generate("r1", prompt(1, 5), ignore_eos=False, **eos),
        generate("r2", prompt(1, 5), ignore_eos=True, **eos),
        generate("r3", prompt(1, 5), ignore_eos=True, stop_token_ids=(EOS,), **eos),
    )

    assert script.tokens("r0") == free[: free.index(stop) + 1]
    assert script.frames("r0")[-1].finish_reason is FinishReason.STOP
    assert script.tokens("r1") == [EOS]
    assert script.frames("r1")[-1].finish_reason is FinishReason.STOP
    assert script.tokens("r2") == [EOS] * 4
    assert script.frames("r2")[-1].finish_reason is FinishReason.LENGTH
    assert script.tokens("r3") == [EOS]


def test_several_answers_of_a_request_differ_and_share_one_numbering(engine: TinyEngine) -> None:
    order = generate("r0", prompt(1, 5), n=3, temperature=1.5, seed=1, max_tokens=12)

    script = engine.complete(order)

    assert len({tuple(script.tokens("r0", i)) for i in range(3)}) == 3
    assert [f.seq for f in script.frames("r0")] == list(range(36))
    again = engine.complete(order)
    assert [again.tokens("r0", i) for i in range(3)] == [script.tokens("r0", i) for i in range(3)]


def test_preempted_answers_are_those_of_an_engine_with_room(tmp_path: Path) -> None:
    """Blocks change hands all the time; what their former owner left must reach nobody."""
    orders = [
        generate(f"r{i}", prompt(i, 3 + 7 * i), max_tokens=20, n=2, temperature=1.0, seed=i,
                 num_logprobs=0, prompt_logprobs=i % 2 == 0)
        for i in range(4)
    ]  # fmt: skip
    roomy = TinyEngine(tmp_path).complete(*orders)

    script = Script([(always, [*orders]), (ended(*orders), [])])
    tight = TinyEngine(tmp_path, kv_cache_tokens=64)
    loop = tight.start(script)
    cache = loop.hosts[BASE].runner.cache
    cache.keys[:, 1:] = float("nan")
    cache.values[:, 1:] = float("nan")
    tight.finish(loop, script)

    assert loop.hosts[BASE].scheduler.num_preemptions > 0
    for i in range(4):
        for index in range(2):
            assert script.tokens(f"r{i}", index) == roomy.tokens(f"r{i}", index)
        scores = [f.prompt_logprobs for f in script.frames(f"r{i}") if f.prompt_logprobs]
        assert [len(line) for line in scores] == ([3 + 7 * i] if i % 2 == 0 else [])


def test_prompt_scores_are_log_softmax_whatever_the_chunks(tmp_path: Path) -> None:
    token_ids = prompt(3, 50)
    engine = TinyEngine(tmp_path, max_batched_tokens=16)

    script = engine.complete(
        generate("r0", token_ids, prompt_logprobs=True, num_logprobs=2, max_tokens=0),
        generate("r1", token_ids, prompt_logprobs=True, num_logprobs=1, max_tokens=3),
    )

    loop = TinyEngine(tmp_path).start(Script([]))
    want = reference_scores(loop.hosts[BASE].runner.decoder, token_ids)
    (frame,) = script.frames("r0")
    assert frame.token_ids == ()
    for name in ("r0", "r1"):
        scores = script.frames(name)[0].prompt_logprobs
        assert scores is not None
        assert scores[0] is None
        assert [s.logprob for s in scores[1:] if s] == pytest.approx(want, abs=1e-4)
    assert all(f.prompt_logprobs is None for f in script.frames("r1")[1:])


def reference_scores(decoder: Any, token_ids: list[int]) -> list[float]:
    from_run = PackedRun(decoder, Random(0))
    stream = from_run.add(token_ids, None)
    while not from_run.is_done:
        from_run.step(max_chunk=64)
    logprobs = torch.log_softmax(torch.cat(stream.logits), -1)
    return [float(logprobs[i, token]) for i, token in enumerate(token_ids[1:])]


def test_a_replay_sends_the_same_frames_again(engine: TinyEngine) -> None:
    script = engine.run(
        (always, [generate("r0", prompt(1, 5), max_tokens=200)]),
        (lambda s: len(s.tokens("r0")) >= 5, [replay("r0", 2)]),
    )

    frames = script.frames("r0")
    by_seq = {frame.seq: frame for frame in frames}
    assert sorted(by_seq) == list(range(200))
    assert all(frame == by_seq[frame.seq] for frame in frames)
    repeated = len(frames) - 200
    assert repeated >= 3
    assert {f.seq for f in frames if frames.count(f) > 1} == set(range(2, 2 + repeated))


def test_the_end_of_an_answer_can_be_had_again(engine: TinyEngine) -> None:
    script = engine.run(
        (always, [generate("r0", prompt(1, 5), max_tokens=20)]),
        (lambda s: s.is_answered("r0"), [replay("r0", 15)]),
    )

    frames = script.frames("r0")
    assert frames[20:] == frames[15:20]


def test_who_waits_for_frames_that_are_gone_is_told(engine: TinyEngine) -> None:
    script = engine.run((always, [replay("unknown", 7)]), (turned(2), []))

    (frame,) = script.frames("unknown")
    assert (frame.seq, frame.error_code) == (7, "worker_lost")


def replay(request_id: str, from_seq: int) -> Replay:
    return Replay(request_id=request_id, reply_to=REPLY_TO, from_seq=from_seq)
