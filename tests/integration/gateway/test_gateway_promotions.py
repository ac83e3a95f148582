"""Evaluations over HTTP: what their rules make live, asked for alone or as the gate of a job."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from openai import BadRequestError, NotFoundError

from tests.integration.gateway import training
from tests.integration.gateway.caller import HELLO, Caller
from tests.integration.gateway.conftest import ANSWER, wait_until
from tests.integration.gateway.evaluations import BETTER, LOSS, by_version, evaluated, means, row
from tests.integration.gateway.training import create, upload

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker


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
