"""Evaluations over HTTP: what the graders say of answers and scores."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from scheduler.domain.evaluation import EvaluationPlan, EvaluationReport
from scheduler.domain.tenant import Tenant
from scheduler.gradebook import Gradebook, Grades
from scheduler.text.exercise import Exercise
from service.evaluation_run import EvaluationRun
from tests.integration.gateway.caller import Caller
from tests.integration.gateway.conftest import ANSWER, wait_until
from tests.integration.gateway.evaluations import (
    LOSS,
    begun,
    by_version,
    evaluated,
    means,
    over,
    row,
    uploaded,
)
from tests.integration.gateway.fake_worker import Plan
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.domain.evaluation import Contender
    from scheduler.grader import Trial
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker


class SlowBook(Gradebook):
    """Grades a row only when the event loop lets it."""

    def __init__(self) -> None:
        super().__init__(())
        self.released = threading.Event()

    def grade(self, trials: Mapping[Contender, Trial]) -> Grades:
        """See Gradebook."""
        assert self.released.wait(10)
        return super().grade(trials)


class TestGrades:
    def test_every_grader_says_what_the_answers_and_scores_were(
        self, owner: Caller, worker: FakeWorker, service: Service
    ) -> None:
        by_version(service, worker, base=-2.0, v1=-0.25)
        graders = [
            {"type": "loss"},
            {"type": "token_accuracy"},
            {"type": "string_check", "name": "exact"},
            {"type": "json_valid"},
            {"type": "regex", "config": {"pattern": "^Hel+o"}},
            {"type": "pairwise", "config": {"against": "base"}},
        ]

        shown = evaluated(
            owner, owner.imported()["model"], file=uploaded(owner, row("Hi"), row("Ho", "Nay")),
            graders=graders,
        )  # fmt: skip

        expected = {"token_accuracy": 1.0, "exact": 0.5, "json_valid": 0.0, "regex": 1.0}
        assert means(shown, "candidate") == expected | {"loss": 0.25, "pairwise": 1.0}
        assert means(shown, "base") == expected | {"loss": 2.0, "pairwise": 0.5}
        assert shown["contenders"]["base"]["model"] == BASE
        assert shown["promoted"] is None

    def test_a_pair_of_prompt_and_completion_is_a_row_too(
        self, owner: Caller, worker: FakeWorker
    ) -> None:
        del worker
        file_id = uploaded(owner, {"prompt": "Greet:", "completion": ANSWER})

        shown = evaluated(
            owner, owner.imported()["model"], file=file_id, graders=[{"type": "string_check"}]
        )

        assert means(shown, "candidate") == {"string_check": 1.0}

    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            ({"messages": []}, "Line 2 of the file: messages must hold at least one of role"),
            ({"prompt": "", "completion": "x"}, "Line 2 of the file: nothing precedes"),
            (row("x" * 600), "Line 2 of the file: 6"),
        ],
    )
    def test_a_row_that_cannot_be_asked_ends_it_with_its_line(
        self, owner: Caller, worker: FakeWorker, bad: dict[str, Any], said: str
    ) -> None:
        del worker
        file_id = uploaded(owner, row("Hi"), bad)

        shown = over(
            owner,
            begun(
                owner, owner.imported()["model"], file=file_id, graders=[{"type": "string_check"}]
            ),
        )

        assert shown["status"] == "failed"
        assert shown["error"].startswith(said)

    def test_a_worker_that_is_lost_is_asked_again(
        self, owner: Caller, worker: FakeWorker, service: Service
    ) -> None:
        token_ids = service.tokenizer.encode(ANSWER)
        failing = iter([True] * 3)
        worker.plan = lambda _: Plan(
            token_ids,
            fail_at=0 if next(failing, False) else None,
            fail_code="server_overloaded",
        )

        assert evaluated(owner, owner.imported()["model"], **LOSS)["num_rows"] == 2

    def test_what_it_asked_is_usage(self, owner: Caller, worker: FakeWorker) -> None:
        adapter = owner.imported()
        evaluated(owner, adapter["model"], **LOSS)
        asked = sum(len(request.prompt_token_ids) for request in worker.requests)

        def counted() -> int:
            return sum(day["prompt_tokens"] for day in owner.ok("GET", "/usage")["data"])

        wait_until(lambda: counted() == asked)

    def test_a_pattern_that_takes_its_time_stops_no_event_loop(self, service: Service) -> None:
        book = SlowBook()
        plan = EvaluationPlan(file="file-1", graders=(), max_rows=1, max_answer_tokens=1)
        exercise = Exercise(
            prompt_ids=(1,), reference="a", continues_text=False, token_ids=(1, 2), scored=(1,)
        )

        async def run() -> EvaluationReport:
            asyncio.get_running_loop().call_later(0.05, book.released.set)
            with ThreadPoolExecutor(1) as threads:
                engines, tenant = service.gateway.engines, Tenant(id="org-1", name="a")
                adapters = service.gateway.adapters.for_tenant(tenant.id)
                evaluation = EvaluationRun(engines, tenant, {}, adapters, plan, book, threads)
                return await evaluation.over(iter([exercise]))

        assert service.thread.run(run()).num_rows == 1
