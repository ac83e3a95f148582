"""Callers and agents that want no more: aborted requests, and a drained engine."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.messages import (
    Abort,
    CheckpointWritten,
    Drain,
    EngineReady,
    JobStopped,
)
from tests.integration.engine_driver import (
    BASE,
    Script,
    TinyEngine,
    always,
    assert_nothing_is_held,
    generate,
    prompt,
    turned,
)
from workers.job_checkpoint import verify_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import ToEngine


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path)


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


def test_one_answer_of_several_can_be_aborted(engine: TinyEngine) -> None:
    script = engine.run(
        (always, [generate("r0", prompt(1, 5), n=2, max_tokens=60)]),
        (lambda s: len(s.tokens("r0", 1)) > 2, [abort("r0", 0)]),
        (lambda s: s.is_answered("r0"), []),
    )

    assert len(script.tokens("r0", 0)) < 60
    assert len(script.tokens("r0", 1)) == 60


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
