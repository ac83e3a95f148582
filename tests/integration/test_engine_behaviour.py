"""How requests and jobs begin, end and fail in the real engine loop."""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scheduler.domain.messages import (
    Abort,
    CheckpointWritten,
    Drain,
    EngineReady,
    JobStopped,
    Replay,
    StartJob,
    StopJob,
)
from scheduler.domain.request import FinishReason
from tests.integration.engine_driver import (
    BASE,
    REPLY_TO,
    Script,
    TinyEngine,
    always,
    assert_nothing_is_held,
    generate,
)
from tests.unit.workers.packed_run import PackedRun
from tests.unit.workers.tiny_models import VOCAB_SIZE
from workers.job_checkpoint import verify_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import ToEngine

EOS = 2  # of every tiny model


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path)


def prompt(seed: int, count: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(3, VOCAB_SIZE) for _ in range(count)]


def answers(engine: TinyEngine, *orders: ToEngine, n: int = 1) -> Script:
    """Run orders at once, until the requests named r* have ended."""
    names = {o.request.request_id for o in orders if o.type == "generate"}
    return engine.run(
        (always, [*orders]), (lambda s: all(s.is_answered(name, n) for name in names), [])
    )


# ---- how answers end -------------------------------------------------------------------------


def test_max_tokens_bounds_the_answer(engine: TinyEngine) -> None:
    orders = [generate(f"r{m}", prompt(1, 5), max_tokens=m) for m in (0, 1, 9)]

    script = answers(engine, *orders)

    for count in (0, 1, 9):
        assert len(script.tokens(f"r{count}")) == count
        assert script.frames(f"r{count}")[-1].finish_reason is FinishReason.LENGTH
    assert script.tokens("r9")[:1] == script.tokens("r1")


def test_an_answer_ends_where_the_context_does(engine: TinyEngine) -> None:
    script = answers(
        engine,
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

    script = answers(
        engine,
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
    free = answers(engine, generate("r", prompt(1, 5), max_tokens=10)).tokens("r")
    stop = next(t for t in free[2:] if t not in free[:2])
    eos: dict[str, Any] = {"logit_bias": {EOS: 100}, "max_tokens": 4}

    script = answers(
        engine,
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

    script = answers(engine, order, n=3)

    assert len({tuple(script.tokens("r0", i)) for i in range(3)}) == 3
    assert [f.seq for f in script.frames("r0")] == list(range(36))
    again = answers(engine, order, n=3)
    assert [again.tokens("r0", i) for i in range(3)] == [script.tokens("r0", i) for i in range(3)]


def test_preempted_answers_are_those_of_an_engine_with_room(tmp_path: Path) -> None:
    """Blocks change hands all the time; what their former owner left must reach nobody."""
    orders = [
        generate(f"r{i}", prompt(i, 3 + 7 * i), max_tokens=20, n=2, temperature=1.0, seed=i,
                 num_logprobs=0, prompt_logprobs=i % 2 == 0)
        for i in range(4)
    ]  # fmt: skip
    roomy = answers(TinyEngine(tmp_path), *orders, n=2)

    script = Script([(always, [*orders]), (lambda s: all_ended(s, 4, n=2), [])])
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


def all_ended(script: Script, count: int, n: int = 1) -> bool:
    return all(script.is_answered(f"r{i}", n) for i in range(count))


# ---- prompt scores, replay -------------------------------------------------------------------


def test_prompt_scores_are_log_softmax_whatever_the_chunks(tmp_path: Path) -> None:
    token_ids = prompt(3, 50)
    engine = TinyEngine(tmp_path, max_batched_tokens=16)

    script = answers(
        engine,
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


def replay(request_id: str, from_seq: int) -> Replay:
    return Replay(request_id=request_id, reply_to=REPLY_TO, from_seq=from_seq)


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


# ---- aborts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["queue", "prefill", "decode"])
def test_an_abort_frees_everything(tmp_path: Path, when: str) -> None:
    engine = TinyEngine(tmp_path, max_num_sequences=1, max_batched_tokens=16)
    adapter = engine.adapter("a", 4, ("q_proj",))
    long = generate("long", prompt(2, 200), adapter, max_tokens=50)
    orders: dict[str, list[ToEngine]] = {
        "queue": [generate("first", prompt(1, 5), max_tokens=50), long, abort("long")],
        "prefill": [long],
        "decode": [long],
    }
    due = {
        "queue": always,
        "prefill": turned(3),
        "decode": lambda s: len(s.tokens("long")) > 3,
    }

    script = engine.run(
        (always, orders[when]),
        (due[when], [abort("long"), abort("nobody")]),
        (always, [generate("after", prompt(3, 5))]),
        (lambda s: s.is_answered("after"), []),
    )

    assert not any(f.finish_reason for f in script.frames("long"))
    assert bool(script.tokens("long")) == (when == "decode")
    assert len(script.tokens("after")) == 8


def abort(request_id: str, index: int | None = None) -> Abort:
    return Abort(request_id=request_id, index=index)


def turned(count: int) -> Any:
    """True from the count-th look on: so many turns of the loop have passed."""
    looks = iter(range(count))
    return lambda _: next(looks, None) is None


def test_one_answer_of_several_can_be_aborted(engine: TinyEngine) -> None:
    script = engine.run(
        (always, [generate("r0", prompt(1, 5), n=2, max_tokens=60)]),
        (lambda s: len(s.tokens("r0", 1)) > 2, [abort("r0", 0)]),
        (lambda s: s.is_answered("r0"), []),
    )

    assert len(script.tokens("r0", 0)) < 60
    assert len(script.tokens("r0", 1)) == 60


# ---- refusals --------------------------------------------------------------------------------


def test_what_cannot_be_answered_is_refused_and_the_rest_goes_on(engine: TinyEngine) -> None:
    other = TinyEngine(engine.folder / "other", family="llama")
    foreign = other.adapter("foreign", 4, ("q_proj", "o_proj"))
    gone = engine.adapter("gone", 4, ("q_proj",))
    for path in gone.glob("adapter_*"):
        path.unlink()
    good = generate("r0", prompt(1, 5))
    homeless = generate("r6", prompt(1, 5), foreign)

    script = answers(
        engine,
        good,
        generate("r1", prompt(1, 5), base_model="unknown"),
        generate("r2", prompt(1, 5), foreign),
        generate("r3", prompt(1, 5), gone),
        generate("r4", [1, VOCAB_SIZE, 2]),
        generate("r5", prompt(1, 5), logit_bias={VOCAB_SIZE: 1.0}),
        homeless.model_copy(update={"adapter_dirs": {}}),
        generate("r7", [1, -1, 2]),
        generate("r8", prompt(1, 5), engine.adapter("wide", 65, ("q_proj",)), n=2),
        good,
    )

    codes = {f"r{i}": script.frames(f"r{i}")[-1].error_code for i in range(1, 9)}
    assert codes == {f"r{i}": "invalid_value" for i in range(2, 9)} | {"r1": "model_not_found"}
    assert len(script.tokens("r0")) == 8
    assert all(f.error is None for f in script.frames("r0"))


def test_requests_of_more_adapters_than_fit_are_all_answered(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, adapter_slots=1, max_rank=8)
    adapters = [engine.adapter(f"a{i}", 8, ("q_proj", "v_proj"), seed=i) for i in range(5)]
    orders = [generate(f"r{i}", prompt(i, 6), adapters[i % 5], n=1 + i % 2) for i in range(15)]

    script = engine.run(
        (always, [orders[0], *orders]),
        (lambda s: all(s.is_answered(f"r{i}", 1 + i % 2) for i in range(1, 15)), []),
    )

    assert all(len(script.tokens(f"r{i}")) == 8 for i in range(1, 15))


def test_a_waiting_request_for_a_resident_adapter_does_not_block_one_that_needs_its_columns(
    tmp_path: Path,
) -> None:
    engine = TinyEngine(tmp_path, adapter_slots=1, max_rank=8, max_num_sequences=1)
    old, new = (engine.adapter(name, 16 // 2, ("q_proj",)) for name in ("old", "new"))
    third = engine.adapter("third", 8, ("v_proj",))

    script = engine.run(
        (always, [generate("warm", prompt(1, 4), old), generate("warm2", prompt(1, 4), third)]),
        (
            lambda s: s.is_answered("warm") and s.is_answered("warm2"),
            [
                generate("r0", prompt(1, 4), new),
                generate("r1", prompt(2, 4), old),
                generate("r2", prompt(2, 4), third),
            ],
        ),
        (lambda s: all_ended(s, 3), []),
    )

    assert all(len(script.tokens(f"r{i}")) == 8 for i in range(3))


def test_an_adapter_that_takes_long_to_read_holds_up_its_own_request_only(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    slow = engine.adapter("slow", 4, ("q_proj",), seed=1)
    quick = engine.adapter("quick", 4, ("q_proj",), seed=2)
    config = slow / "adapter_config.json"
    content = config.read_bytes()
    config.unlink()
    os.mkfifo(config)  # whoever opens it waits for a writer

    script = engine.run(
        (
            always,
            [
                generate("cold", prompt(1, 5), slow),
                generate("r0", prompt(2, 5), quick, max_tokens=40),
                generate("r1", prompt(3, 5), max_tokens=40, tenant_id="other"),
            ],
        ),
        (lambda s: s.is_answered("r0") and s.is_answered("r1"), [generate("r2", prompt(4, 5))]),
        (lambda s: s.is_answered("r2") and bool(config.write_bytes(content)), []),
        (lambda s: s.is_answered("cold"), []),
    )

    assert len(script.tokens("cold")) == 8


def test_a_request_that_leaves_while_its_adapter_is_read_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    engine = TinyEngine(tmp_path)
    slow = engine.adapter("slow", 4, ("q_proj",))
    config = slow / "adapter_config.json"
    content = config.read_bytes()
    config.unlink()
    os.mkfifo(config)

    script = engine.run(
        (always, [generate("gone", prompt(1, 5), slow), generate("r0", prompt(2, 5))]),
        (lambda s: s.is_answered("r0"), [Abort(request_id="gone")]),
        (lambda _: bool(config.write_bytes(content)), [generate("r1", prompt(2, 5))]),
        (lambda s: s.is_answered("r1"), []),
    )

    assert script.frames("gone") == []


def test_without_host_memory_adapters_come_from_the_disk_and_answer_the_same(
    tmp_path: Path,
) -> None:
    answered = []
    for ram in (0, 1 << 30):
        engine = TinyEngine(tmp_path, adapter_slots=1, max_rank=8, adapter_ram_bytes=ram)
        adapters = [engine.adapter(f"a{i}", 8, ("q_proj", "v_proj"), seed=i) for i in range(4)]
        orders = [generate(f"r{i}", prompt(i, 6), adapters[i % 4]) for i in range(12)]
        script = answers(engine, *orders)
        answered.append([script.tokens(f"r{i}") for i in range(12)])

    assert answered[0] == answered[1]


# ---- jobs ------------------------------------------------------------------------------------


def bad_jobs(engine: TinyEngine) -> dict[str, tuple[StartJob, str]]:
    good = engine.data("good", Random(1))
    torn = engine.folder / "torn.bin"
    torn.write_bytes(good.read_bytes()[:-9])
    foreign = TinyEngine(engine.folder / "foreign")
    return {
        "torn data": (engine.job("torn", torn), "invalid_value"),
        "no data": (engine.job("none", engine.folder / "none.bin"), "invalid_value"),
        "rank": (engine.job("rank", good, method_config={"rank": 65}), "invalid_value"),
        "method": (engine.job("method", good, method="nonsense"), "unknown_plugin"),
        "resume": (
            engine.job("resume", good, resume_from=str(foreign.folder)),
            "invalid_value",
        ),
    }


def test_jobs_that_cannot_start_say_why_and_hold_no_columns(engine: TinyEngine) -> None:
    jobs = bad_jobs(engine)
    script = Script(
        [
            (always, [order for order, _ in jobs.values()]),
            (lambda s: len(s.of(JobStopped)) == len(jobs), []),
        ]
    )
    loop = engine.start(script)

    engine.finish(loop, script)

    codes = {m.job_id: m.error_code for m in script.of(JobStopped)}
    assert codes == {order.job_id: code for order, code in jobs.values()}
    assert loop.hosts[BASE].adapters.resident == ()


def test_one_job_more_than_allowed_goes_back_to_the_queue(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, max_jobs=1)
    data = engine.data("train", Random(1))
    first, second = engine.job("first", data), engine.job("second", data)

    script = engine.run((always, [first, second, first]), (lambda s: s.has_ended("first"), []))

    assert all(m.error is None for m in script.of(JobStopped))
    assert [m.job_id for m in script.of(CheckpointWritten)] == ["first"]


def test_a_stopped_job_leaves_a_checkpoint_where_asked_and_nothing_else(engine: TinyEngine) -> None:
    data = engine.data("train", Random(1))
    jobs = [engine.job(name, data, n_epochs=50) for name in ("kept", "dropped")]

    script = engine.run(
        (always, [*jobs]),
        (
            lambda s: all(len(s.steps(job.job_id)) >= 2 for job in jobs),
            [StopJob(job_id="kept", checkpoint=True), StopJob(job_id="dropped")],
        ),
        (lambda s: len(s.of(JobStopped)) == 2, [StopJob(job_id="kept"), StopJob(job_id="who")]),
    )

    (written,) = script.of(CheckpointWritten)
    assert written.job_id == "kept"
    assert not written.final
    assert written.step == len(script.steps("kept"))
    assert all(m.error is None for m in script.of(JobStopped))


def test_a_job_stopped_right_after_it_saved_itself_does_not_fail(engine: TinyEngine) -> None:
    job = engine.job("job", engine.data("train", Random(1)), n_epochs=50, checkpoint_every_steps=1)

    script = engine.run(
        (always, [job]),
        (lambda s: len(s.steps("job")) == 3, [StopJob(job_id="job", checkpoint=True)]),
        (lambda s: s.has_ended("job"), []),
    )

    assert [m.error for m in script.of(JobStopped)] == [None]
    assert script.of(CheckpointWritten)[-1].step == 3


def test_a_newer_lease_replaces_the_job_and_an_older_one_changes_nothing(
    engine: TinyEngine,
) -> None:
    old = engine.job("job", engine.data("train", Random(1)), n_epochs=20)
    new = old.model_copy(update={"epoch": 3, "checkpoint_root": old.checkpoint_root + "-3"})

    script = engine.run(
        (always, [old]),
        (lambda s: len(s.steps("job")) >= 2, [new, old, new]),
        (lambda s: s.has_ended("job"), []),
    )

    epochs = [step.epoch for step in script.steps("job")]
    assert epochs == sorted(epochs)
    assert epochs.count(3) == 60
    assert [m.epoch for m in script.of(CheckpointWritten)] == [3]
    assert script.of(JobStopped) == []


def test_validation_runs_when_due_and_over_everything_in_the_end(engine: TinyEngine) -> None:
    train, valid = engine.data("train", Random(1)), engine.data("valid", Random(2), 40)
    job = engine.job("job", train, valid_path=str(valid), eval_every_steps=2)

    script = engine.run((always, [job]), (lambda s: s.has_ended("job"), []))

    losses = [step.valid_loss for step in script.steps("job")]
    assert [loss is not None for loss in losses] == [False, True, False, True, False, True]
    (final,) = script.of(CheckpointWritten)
    assert final.metrics["full_valid_loss"] == losses[-1]


def test_training_lowers_the_loss_of_what_it_sees(engine: TinyEngine) -> None:
    job = engine.job(
        "job", engine.data("train", Random(1)), n_epochs=20, learning_rate=2e-2,
        method_config={"rank": 16},
    )  # fmt: skip

    script = engine.run((always, [job]), (lambda s: s.has_ended("job"), []))

    losses = [step.train_loss for step in script.steps("job")]
    assert losses[-1] < 0.5 * losses[0]
    assert script.of(CheckpointWritten)[0].trained_tokens == script.steps("job")[-1].trained_tokens


# ---- drain -----------------------------------------------------------------------------------


def test_a_drained_engine_finishes_streams_saves_jobs_and_takes_nothing_new(
    engine: TinyEngine,
) -> None:
    data = engine.data("train", Random(1))
    job = engine.job("job", data, n_epochs=50)
    script = Script(
        [
            (
                always,
                [generate("r0", prompt(1, 5), max_tokens=100), job],
            ),
            (
                lambda s: len(s.tokens("r0")) > 3 and bool(s.steps("job")),
                [Drain(), generate("r1", prompt(1, 5)), engine.job("late", data)],
            ),
        ]
    )
    loop = engine.start(script)
    script.entries.pop()

    loop.run()

    assert isinstance(script.sent[0], EngineReady)
    assert len(script.tokens("r0")) == 100
    assert script.frames("r1")[0].error_code == "server_overloaded"
    assert {m.job_id: m.error for m in script.of(JobStopped)} == {"job": None, "late": None}
    (written,) = script.of(CheckpointWritten)
    assert written.step == len(script.steps("job"))
    verify_checkpoint(engine.folder / "checkpoints" / "job" / f"step-{written.step}")
    assert_nothing_is_held(loop.hosts[BASE])
