"""Evaluations over HTTP: what is refused, and who is asked what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from service.evaluation_run import ROWS_AT_ONCE
from tests.integration.gateway.caller import Caller
from tests.integration.gateway.conftest import ANSWER, wait_until
from tests.integration.gateway.evaluations import (
    BETTER,
    LOSS,
    begun,
    evaluated,
    over,
    row,
    uploaded,
)
from tests.integration.gateway.fake_worker import Plan
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker


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
