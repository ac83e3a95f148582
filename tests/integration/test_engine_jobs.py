"""Jobs in the real engine loop: how they learn, stop, and are replaced."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.messages import (
    CheckpointWritten,
    JobStopped,
    StopJob,
)
from tests.integration.engine_driver import TinyEngine, always

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path)


def test_training_lowers_the_loss_of_what_it_sees(engine: TinyEngine) -> None:
    job = engine.job(
        "job", engine.data("train", Random(1)), n_epochs=20, learning_rate=2e-2,
        method_config={"rank": 16},
    )  # fmt: skip

    script = engine.complete(job)

    losses = [step.train_loss for step in script.steps("job")]
    assert losses[-1] < 0.5 * losses[0]
    assert script.of(CheckpointWritten)[0].trained_tokens == script.steps("job")[-1].trained_tokens


def test_validation_runs_when_due_and_over_everything_in_the_end(engine: TinyEngine) -> None:
    train, valid = engine.data("train", Random(1)), engine.data("valid", Random(2), 40)
    job = engine.job("job", train, valid_path=str(valid), eval_every_steps=2)

    script = engine.complete(job)

    losses = [step.valid_loss for step in script.steps("job")]
    assert [loss is not None for loss in losses] == [False, True, False, True, False, True]
    (final,) = script.of(CheckpointWritten)
    assert final.metrics["full_valid_loss"] == losses[-1]


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
