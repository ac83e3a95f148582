"""Requests and jobs that cannot be are refused, or leave; the rest goes on."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.messages import (
    CheckpointWritten,
    JobStopped,
    StartJob,
)
from tests.integration.engine_driver import BASE, Script, TinyEngine, always, generate, prompt
from tests.unit.workers.tiny_models import VOCAB_SIZE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path)


def test_what_cannot_be_answered_is_refused_and_the_rest_goes_on(engine: TinyEngine) -> None:
    other = TinyEngine(engine.folder / "other", family="llama")
    foreign = other.adapter("foreign", 4, ("q_proj", "o_proj"))
    gone = engine.adapter("gone", 4, ("q_proj",))
    for path in gone.glob("adapter_*"):
        path.unlink()
    good = generate("r0", prompt(1, 5))
    homeless = generate("r6", prompt(1, 5), foreign)

    orders = [
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
    ]

    script = engine.run(
        (always, [*orders]), (lambda s: all(s.is_answered(f"r{i}") for i in range(9)), [])
    )

    codes = {f"r{i}": script.frames(f"r{i}")[-1].error_code for i in range(1, 9)}
    assert codes == {f"r{i}": "invalid_value" for i in range(2, 9)} | {"r1": "model_not_found"}
    assert len(script.tokens("r0")) == 8
    assert all(f.error is None for f in script.frames("r0"))


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
