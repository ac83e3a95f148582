"""Service classes in the real engine loop, and what it reports of its steps."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.engine_stats import EngineStats
from scheduler.domain.messages import EngineReady, StopJob
from scheduler.domain.service_class import ClassTargets
from tests.integration.engine_driver import Script, TinyEngine, always, generate
from workers import engine_stats
from workers.engine_stats import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scheduler.domain.messages import Generate
    from workers.engine import EngineLoop

PATIENT = ClassTargets(ttft_ms=60_000, tpot_ms=60_000)  # kept on any machine
HASTY = ClassTargets(ttft_ms=1e-3, tpot_ms=1e-3)  # kept on none


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path, slo_classes={"patient": PATIENT, "hasty": HASTY})


def of_class(request_id: str, service_class: str, max_tokens: int = 30) -> Generate:
    order = generate(request_id, [5, 6, 7, 8], max_tokens=max_tokens)
    request = order.request.model_copy(update={"service_class": service_class})
    return order.model_copy(update={"request": request})


def until_ended(*names: str) -> Callable[[Script], bool]:
    return lambda script: all(script.is_answered(name) for name in names)


def reports(script: Script) -> list[EngineStats]:
    return script.of(EngineStats)


def test_the_engine_announces_its_classes_and_refuses_others(engine: TinyEngine) -> None:
    script = engine.run(
        (always, [of_class("r0", "patient", 3), of_class("r1", "silver")]),
        (until_ended("r0", "r1"), []),
    )

    (ready,) = script.of(EngineReady)
    announced = ready.capabilities.service_classes
    assert set(announced) == {"default", "best_effort", "patient", "hasty"}
    assert announced["patient"] == PATIENT
    assert len(script.tokens("r0")) == 3
    refusal = script.frames("r1")[-1]
    assert refusal.error_code == "invalid_value"
    assert "known: best_effort, default, hasty, patient" in (refusal.error or "")


def test_requests_of_all_classes_get_the_same_answer_and_are_judged_by_their_own_targets(
    engine: TinyEngine,
) -> None:
    loop, script = run_with_training(engine, "patient", "hasty", "best_effort")

    assert len({tuple(script.tokens(name)) for name in ("patient", "hasty", "best_effort")}) == 1
    totals = loop.meter.report(list(loop.hosts.values())).slo
    rows = {(row.service_class, row.target): (row.num_within, row.num_over) for row in totals}
    assert rows == {
        ("patient", "ttft"): (1, 0),
        ("patient", "tpot"): (1, 0),
        ("hasty", "ttft"): (0, 1),
        ("hasty", "tpot"): (0, 1),
    }
    assert all(row.training_active for row in totals)


def test_best_effort_requests_bound_no_step_and_a_late_request_stops_training(
    engine: TinyEngine,
) -> None:
    """Training beside best effort alone has no slack to keep to; beside a late request it has 0."""
    free, _ = run_with_training(engine, "best_effort")
    pressed, _ = run_with_training(engine, "best_effort", "hasty")

    beside = [step for step in free.meter.steps if step.num_sequences]
    assert beside
    assert all(step.slack_ms is None for step in beside)
    assert any(step.train_forward_tokens or step.num_units for step in beside)
    late = [step for step in pressed.meter.steps if step.slack_ms is not None]
    assert late
    assert all(step.slack_ms == 0 and not step.jobs for step in late)


def test_every_step_is_reported_once_and_adds_up_to_the_totals(
    engine: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_stats, "REPORT_EVERY_S", 0.0)  # the ring never overflows between two

    loop, script = run_with_training(engine, "default", "best_effort")

    last = loop.meter.report(list(loop.hosts.values()))
    told = [step for report in [*reports(script), last] for step in report.steps]
    assert [step.index for step in told] == list(range(loop.meter.num_steps))
    for kind in KINDS:
        total = sum(getattr(step, f"{kind}_tokens") for step in told)
        assert last.tokens_by_kind[kind] == total > 0
    assert sum(last.histograms["step_ms"].counts) == len(told)
    assert 0 < last.trained_tokens <= last.tokens_by_kind["train_forward"]
    assert {share.job_id for step in told for share in step.jobs} == {"job"}


def run_with_training(engine: TinyEngine, *classes: str) -> tuple[EngineLoop, Script]:
    """One request of each class, named like it, into an engine that trains until all have ended."""
    data = engine.data("train", Random(0))
    script = Script(
        [
            (always, [engine.job("job", data, n_epochs=50)]),
            (lambda s: bool(s.steps("job")), [of_class(name, name) for name in classes]),
            (until_ended(*classes), [StopJob(job_id="job")]),
            (lambda s: s.has_ended("job"), []),
        ]
    )
    loop = engine.start(script)
    engine.finish(loop, script)
    return loop, script
