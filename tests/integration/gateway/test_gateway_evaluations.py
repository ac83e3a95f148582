"""Evaluations over HTTP: what is refused, who is asked what, and what the grades change."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from openai import BadRequestError, NotFoundError

from scheduler.domain.evaluation import EvaluationPlan, EvaluationReport
from scheduler.domain.tenant import Tenant
from scheduler.gradebook import Gradebook, Grades
from scheduler.text.exercise import Exercise
from service.evaluation_run import ROWS_AT_ONCE, EvaluationRun
from tests.integration.gateway import training
from tests.integration.gateway.caller import HELLO, Caller
from tests.integration.gateway.conftest import ANSWER, wait_until
from tests.integration.gateway.fake_worker import Plan
from tests.integration.gateway.tiny_folder import BASE
from tests.integration.gateway.training import create, upload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openai import OpenAI

    from scheduler.domain.evaluation import Contender
    from scheduler.domain.request import RequestBody
    from scheduler.grader import Trial
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

LOSS = {"graders": [{"type": "loss"}]}
BETTER = [{"grader": "loss", "comparison": "at_most", "against": "base"}]


class SlowBook(Gradebook):
    """Grades a row only when the event loop lets it."""

    def __init__(self) -> None:
        super().__init__(())
        self.released = threading.Event()

    def grade(self, trials: Mapping[Contender, Trial]) -> Grades:
        """See Gradebook."""
        assert self.released.wait(10)
        return super().grade(trials)


def row(question: str, answer: str = ANSWER) -> dict[str, Any]:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said}


def uploaded(caller: Caller, *rows: dict[str, Any]) -> str:
    content = "\n".join(json.dumps(one) for one in rows or [row("Hi"), row("Ho")])
    files = {"file": ("rows.jsonl", content.encode())}
    file_id: str = caller.ok("POST", "/files", data={"purpose": "evals"}, files=files)["id"]
    return file_id


def begun(caller: Caller, model: str, **body: Any) -> Any:
    fresh = {"model": model} | ({} if "file" in body else {"file": uploaded(caller)})
    return caller.ok("POST", "/evaluations", json=fresh | body)


def over(caller: Caller, evaluation: Any) -> Any:
    path = f"/evaluations/{evaluation['id']}"
    wait_until(lambda: caller.ok("GET", path)["status"] in ("succeeded", "failed"))
    return caller.ok("GET", path)


def evaluated(caller: Caller, model: str, **body: Any) -> Any:
    shown = over(caller, begun(caller, model, **body))
    assert shown["status"] == "succeeded", shown["error"]
    return shown


def means(shown: Any, contender: str) -> Any:
    return shown["contenders"][contender]["means"]


def by_version(service: Service, worker: FakeWorker, **logprobs: float) -> None:
    """Let `base`, `v1` and `v2` score every prompt as given."""
    token_ids = service.tokenizer.encode(ANSWER)

    def plan(request: RequestBody) -> Plan:
        name = f"v{request.adapter.version}" if request.adapter else "base"
        return Plan(token_ids, prompt_logprob=logprobs[name])

    worker.plan = plan


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"graders": []}, "graders"),
            ({"graders": [{"type": "taste"}]}, "graders.0.type"),
            ({"graders": [{"type": "loss", "config": {"x": 1}}]}, "graders.0.config.x"),
            ({"graders": [{"type": "regex"}]}, "graders.0.config.pattern"),
            (
                {"graders": [{"type": "regex", "config": {"pattern": "("}}]},
                "graders.0.config.pattern",
            ),
            ({"graders": [{"type": "loss"}, {"type": "loss"}]}, "graders.1.name"),
            (LOSS | {"promote_if": [{"grader": "x", "comparison": "at_most"}]}, "promote_if"),
            (LOSS | {"promote_if": []}, "promote_if"),
            (LOSS | {"file": "file-none"}, "file"),
            (LOSS | {"max_rows": 0}, "max_rows"),
            (LOSS | {"model": BASE}, "model"),
            (LOSS | {"colour": "red"}, "colour"),
        ],
    )
    def test_what_makes_no_sense_is_refused_at_once(
        self, owner: Caller, worker: FakeWorker, body: dict[str, Any], param: str
    ) -> None:
        usual = {"model": owner.imported()["model"], "file": uploaded(owner)}

        error = owner.refused("POST", "/evaluations", 400, json=usual | body)

        assert error["param"] == param
        assert worker.requests == []

    def test_only_models_that_the_tenant_may_call_take_part(
        self, owner: Caller, borrower: Caller, worker: FakeWorker
    ) -> None:
        del worker
        theirs, mine = owner.imported()["model"], borrower.imported()["model"]
        usual = {"model": mine, "file": uploaded(borrower)} | LOSS

        for param in ("model", "current"):
            error = borrower.refused("POST", "/evaluations", 404, json=usual | {param: theirs})
            assert error["param"] == param
        error = borrower.refused(
            "POST", "/evaluations", 400, json=usual | {"file": uploaded(owner)}
        )
        assert error["param"] == "file"

    def test_a_borrower_evaluates_but_promotes_nothing(
        self, owner: Caller, borrower: Caller, worker: FakeWorker
    ) -> None:
        del worker
        lent = owner.imported()
        body = {"tenant_id": borrower.tenant.id}
        owner.ok("POST", f"/adapters/{lent['id']}/shares", json=body)
        usual = {"model": lent["model"], "file": uploaded(borrower)} | LOSS

        assert evaluated(borrower, lent["model"], **LOSS)["num_rows"] == 2
        borrower.refused("POST", "/evaluations", 403, json=usual | {"promote_if": BETTER})

    def test_a_share_that_ends_ends_a_borrowers_evaluation_and_frees_the_adapter(
        self, owner: Caller, borrower: Caller, worker: FakeWorker, service: Service
    ) -> None:
        token_ids = service.tokenizer.encode(ANSWER)
        worker.plan = lambda _: Plan(token_ids, delay_s=0.2)
        lent = owner.imported()
        path, body = f"/adapters/{lent['id']}", {"tenant_id": borrower.tenant.id}
        owner.ok("POST", f"{path}/shares", json=body)
        rows = uploaded(borrower, *(row(str(number)) for number in range(10 * ROWS_AT_ONCE)))
        running = begun(borrower, lent["model"], file=rows, **LOSS)
        wait_until(lambda: len(worker.requests) > 0)

        owner.ok("DELETE", f"{path}/shares/{borrower.tenant.id}")

        ended = over(borrower, running)
        assert ended["status"] == "failed"
        assert ended["error"].startswith(f"The model '{lent['model']}@1' does not exist")
        assert len([one for one in worker.requests if one.adapter]) <= 2 * ROWS_AT_ONCE
        wait_until(lambda: owner.call("DELETE", path).status_code == 200)

    def test_another_tenants_evaluation_is_not_found(
        self, owner: Caller, borrower: Caller, worker: FakeWorker
    ) -> None:
        del worker
        made = evaluated(owner, owner.imported()["model"], **LOSS)

        for method in ("GET", "DELETE"):
            borrower.refused(method, f"/evaluations/{made['id']}", 404)
        assert borrower.ok("GET", "/evaluations")["data"] == []
        assert [one["id"] for one in owner.ok("GET", "/evaluations")["data"]] == [made["id"]]

    def test_a_repeated_key_evaluates_nothing_new(self, owner: Caller, worker: FakeWorker) -> None:
        del worker
        body = {"model": owner.imported()["model"], "file": uploaded(owner)} | LOSS
        headers = {"idempotency-key": "once"}

        first = owner.ok("POST", "/evaluations", json=body, headers=headers)

        assert owner.ok("POST", "/evaluations", json=body, headers=headers)["id"] == first["id"]
        over(owner, first)


class TestWhoIsAskedWhat:
    def test_candidate_current_and_base_are_asked_at_the_same_time(
        self, owner: Caller, worker: FakeWorker, service: Service
    ) -> None:
        token_ids = service.tokenizer.encode(ANSWER)
        worker.plan = lambda _: Plan(token_ids, silent=True)
        adapter = owner.imported()
        owner.with_version(adapter, 0.5)

        begun(
            owner, f"{adapter['model']}@2", file=uploaded(owner, row("Hi")),
            graders=[{"type": "loss"}, {"type": "string_check"}],
        )  # fmt: skip

        wait_until(lambda: len(worker.requests) == 6)  # none of them has been answered
        asked = {
            (request.adapter and request.adapter.version, request.sampling.prompt_logprobs)
            for request in worker.requests
        }
        assert asked == {(version, kind) for version in (None, 1, 2) for kind in (True, False)}
        assert {request.service_class for request in worker.requests} == {"best_effort"}
        assert {request.tenant_id for request in worker.requests} == {owner.tenant.id}
        (only,) = owner.ok("GET", "/evaluations")["data"]
        owner.ok("DELETE", f"/evaluations/{only['id']}")

    def test_a_question_is_what_a_chat_request_would_ask(
        self, owner: Caller, worker: FakeWorker
    ) -> None:
        adapter = owner.imported()
        owner.chat(adapter["model"])
        (asked,) = worker.requests
        worker.requests.clear()

        evaluated(
            owner, adapter["model"], file=uploaded(owner, row("Hi")),
            graders=[{"type": "string_check"}], max_answer_tokens=9,
        )  # fmt: skip

        assert {r.prompt_token_ids for r in worker.requests} == {asked.prompt_token_ids}
        assert {(r.sampling.temperature, r.sampling.max_tokens) for r in worker.requests} == {
            (0.0, 9)
        }

    def test_a_version_that_answers_already_is_asked_once_for_both(
        self, owner: Caller, worker: FakeWorker
    ) -> None:
        shown = evaluated(owner, owner.imported()["model"], file=uploaded(owner, row("Hi")), **LOSS)

        assert len(worker.requests) == 2
        assert shown["contenders"]["current"] == shown["contenders"]["candidate"]

    def test_only_the_first_rows_are_asked(self, owner: Caller, worker: FakeWorker) -> None:
        del worker
        rows = [row(str(number)) for number in range(30)]

        shown = evaluated(
            owner, owner.imported()["model"], file=uploaded(owner, *rows), max_rows=20, **LOSS
        )

        assert shown["num_rows"] == 20


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


class TestPromotion:
    def test_a_version_that_keeps_the_rules_becomes_live(
        self, owner: Caller, worker: FakeWorker, service: Service
    ) -> None:
        by_version(service, worker, base=-2.0, v1=-1.0, v2=-0.5)
        adapter = owner.imported()
        owner.with_version(adapter, 0.5)
        rules = [{"grader": "loss", "comparison": "at_most", "against": "current", "margin": -0.4}]

        shown = evaluated(owner, f"{adapter['model']}@2", promote_if=rules, **LOSS)

        assert (shown["promoted"], shown["reasons"]) == (True, [])
        assert means(shown, "current") == {"loss": 1.0}
        assert owner.ok("GET", f"/adapters/{adapter['id']}")["live_version"] == 2

    def test_one_that_breaks_a_rule_does_not(
        self, owner: Caller, worker: FakeWorker, service: Service
    ) -> None:
        by_version(service, worker, base=-0.5, v1=-1.0, v2=-1.5)
        adapter = owner.imported()
        owner.with_version(adapter, 0.5)

        shown = evaluated(owner, f"{adapter['model']}@2", promote_if=BETTER, **LOSS)

        assert shown["promoted"] is False
        assert shown["reasons"] == ["loss is 1.5; it must be at most 0.5."]
        assert owner.ok("GET", f"/adapters/{adapter['id']}")["live_version"] is None

    def test_another_model_can_be_the_one_to_beat(
        self, owner: Caller, worker: FakeWorker, service: Service
    ) -> None:
        by_version(service, worker, base=-2.0, v1=-1.0, v2=-1.5)
        adapter = owner.imported()
        owner.with_version(adapter, 0.5)
        rules = [{"grader": "loss", "comparison": "at_most", "against": "current"}]

        shown = evaluated(
            owner, adapter["model"], promote_if=rules, current=f"{adapter['model']}@2", **LOSS
        )

        assert means(shown, "current") == {"loss": 1.5}
        assert shown["promoted"] is True


def gated_job(service: Service, client: OpenAI, **gate: Any) -> Any:
    """A job with such a gate that has succeeded."""
    options = {"graders": [{"type": "loss"}], "rules": BETTER} | gate
    file_id = upload(client, content=json.dumps(row("Hi")).encode()).id
    job = create(
        client, training_file=file_id, validation_file=file_id, extra_body={"promote_if": options}
    )
    epoch = training.start(service, job.id)
    training.checkpoint(service, job.id, epoch, 10, final=True)
    return client.fine_tuning.jobs.retrieve(job.id)


def last_words(client: OpenAI, job: Any) -> str:
    """The newest event of the job."""
    message: str = client.fine_tuning.jobs.list_events(job.id, limit=1).data[0].message
    return message


class TestGateOfAJob:
    def test_its_name_answers_once_it_was_better_than_the_base(
        self, service: Service, client: OpenAI, worker: FakeWorker
    ) -> None:
        by_version(service, worker, base=-2.0, v1=-0.5)

        job = gated_job(service, client)

        wait_until(lambda: "version 1 is live" in last_words(client, job))
        chat = client.chat.completions.create(model=job.fine_tuned_model, messages=HELLO)
        assert chat.choices[0].message.content == ANSWER

    def test_its_name_does_not_answer_if_it_was_worse(
        self, service: Service, client: OpenAI, worker: FakeWorker
    ) -> None:
        by_version(service, worker, base=-0.5, v1=-2.0)

        job = gated_job(service, client)

        wait_until(lambda: "does not become live" in last_words(client, job))
        assert "loss is 2; it must be at most 0.5." in last_words(client, job)
        for name in (job.fine_tuned_model, f"{job.fine_tuned_model}:live"):
            with pytest.raises(NotFoundError):
                client.chat.completions.create(model=name, messages=HELLO)
        client.chat.completions.create(model=f"{job.fine_tuned_model}@1", messages=HELLO)

    @pytest.mark.parametrize(
        ("gate", "param"),
        [
            ({"graders": [{"type": "taste"}]}, "promote_if.graders.0.type"),
            ({"rules": []}, "promote_if.rules"),
            ({"rules": [{"grader": "x", "comparison": "at_most"}]}, "promote_if.rules"),
            ({"file": None}, "promote_if.file"),
            ({"file": "file-none"}, "promote_if.file"),
        ],
    )
    def test_a_gate_that_makes_no_sense_is_refused_at_once(
        self, client: OpenAI, worker: FakeWorker, gate: dict[str, Any], param: str
    ) -> None:
        del worker
        usual = {"graders": [{"type": "loss"}], "rules": BETTER, "file": upload(client).id}

        with pytest.raises(BadRequestError) as refused:
            create(client, extra_body={"promote_if": usual | gate})

        assert refused.value.param == param

    def test_what_was_not_evaluated_does_not_become_live(
        self, client: OpenAI, worker: FakeWorker
    ) -> None:
        del worker
        file_id = upload(client).id
        extras = {
            "promote_if": {"graders": [{"type": "loss"}], "rules": BETTER},
            "compress": {"guard": 0.1, "promote": True},
        }

        with pytest.raises(BadRequestError) as refused:
            create(client, validation_file=file_id, extra_body=extras)

        assert refused.value.param == "compress.promote"
