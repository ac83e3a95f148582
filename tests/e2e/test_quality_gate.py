"""A job's adapter answers once an evaluation let it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from openai import NotFoundError

from tests.e2e.calls import call, say
from tests.e2e.evaluations import GRADERS, evaluated
from tests.e2e.service import (
    BASE_MODEL,
    RunningService,
    finished,
    rows,
    start,
    start_job,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai import OpenAI

pytestmark = pytest.mark.e2e
BETTER = {"grader": "loss", "comparison": "at_most", "against": "base", "margin": -0.1}
PERFECT = {"grader": "loss", "comparison": "at_most", "margin": 0.0}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = start(tmp_path_factory.mktemp("up"))
    yield running
    running.stop()


def gated(client: OpenAI, rule: dict[str, Any]) -> tuple[Any, Any]:
    """A job that has ended with such a gate, and what its evaluation found."""
    valid = client.files.create(file=("valid.jsonl", rows(8)), purpose="fine-tune")
    options = {"graders": GRADERS, "rules": [rule], "max_answer_tokens": 8}
    job = finished(
        client,
        start_job(
            client, epochs=6, learning_rate=5e-3, validation_file=valid.id, promote_if=options
        ),
    )
    assert job.status == "succeeded"
    made = call(client, "GET", "evaluations").json()["data"]
    (evaluation_id,) = [one["id"] for one in made if one["job_id"] == job.id]
    return job, evaluated(client, evaluation_id)


def validation_loss(client: OpenAI, job: Any) -> float:
    """What the job's worker measured last."""
    curve = call(client, "GET", f"fine_tuning/jobs/{job.id}/curve").json()["data"]
    return float([point["valid_loss"] for point in curve if point["valid_loss"] is not None][-1])


def test_only_what_was_good_enough_answers(service: RunningService) -> None:
    client = service.tenant("maker")

    good, shown = gated(client, BETTER)
    assert (shown["promoted"], shown["reasons"]) == (True, [])
    mine, base = (shown["contenders"][name]["means"] for name in ("candidate", "base"))
    assert mine["loss"] == pytest.approx(validation_loss(client, good), rel=0.02)
    assert mine["loss"] < base["loss"] - 0.1
    assert mine["token_accuracy"] > base["token_accuracy"]
    assert mine["pairwise"] > 0.5
    assert say(client, good.fine_tuned_model) != say(client, BASE_MODEL)

    bad, shown = gated(client, PERFECT)
    assert shown["promoted"] is False
    assert shown["reasons"][0].startswith("loss is ")
    with pytest.raises(NotFoundError):
        say(client, bad.fine_tuned_model)
    assert say(client, f"{bad.fine_tuned_model}@{shown['version']}")
    (told, *_) = client.fine_tuning.jobs.list_events(bad.id).data
    assert "does not become live" in told.message
