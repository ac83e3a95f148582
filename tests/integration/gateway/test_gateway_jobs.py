"""Fine-tuning jobs and their models through the official client."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.integration.gateway import training
from tests.integration.gateway.caller import HELLO
from tests.integration.gateway.conftest import ANSWER
from tests.integration.gateway.tiny_folder import BASE
from tests.integration.gateway.training import create, finished_job, upload

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

pytestmark = pytest.mark.usefixtures("worker")


def hyperparameters(**options: Any) -> Any:
    """A supervised method with these."""
    return {"type": "supervised", "supervised": {"hyperparameters": options}}


def test_a_job_is_created_with_every_auto_resolved(service: Service) -> None:
    tenant, key = service.tenant()
    client = service.client(key)

    job = create(
        client,
        suffix="first",
        seed=5,
        metadata={"team": "a"},
        method=hyperparameters(n_epochs="auto", batch_size="auto", learning_rate_multiplier="auto"),
    )

    assert job.id.startswith("ftjob-")
    assert job.status == "validating_files"
    assert job.organization_id == tenant.id
    assert (job.model, job.seed, job.metadata) == (BASE, 5, {"team": "a"})
    assert job.fine_tuned_model is None
    assert job.finished_at is None
    assert job.error is None
    shown = job.hyperparameters
    assert (shown.n_epochs, shown.batch_size, shown.learning_rate_multiplier) == (3, 8, 1.0)
    resolved = job.method.supervised.hyperparameters
    assert resolved.n_epochs == 3
    assert resolved.method_config == {"rank": 16, "alpha": 32}
    assert client.fine_tuning.jobs.retrieve(job.id) == job


def test_options_are_found_in_all_three_places(client: OpenAI) -> None:
    nested = create(client, method=hyperparameters(n_epochs=2, rank=4, weight_decay=0.5))
    deprecated = create(client, hyperparameters={"n_epochs": 4, "learning_rate_multiplier": 0.5})
    top = create(client, extra_body={"learning_rate": 1e-3, "alpha": 8, "deterministic": True})

    inner = nested.method.supervised.hyperparameters
    assert (inner.n_epochs, inner.method_config["rank"]) == (2, 4)
    assert inner.optimizer_config == {"weight_decay": 0.5}
    assert deprecated.hyperparameters.n_epochs == 4
    assert deprecated.method.supervised.hyperparameters.learning_rate == pytest.approx(1e-4)
    assert top.hyperparameters.learning_rate_multiplier == pytest.approx(5.0)
    assert top.method.supervised.hyperparameters.deterministic is True
    assert top.method.supervised.hyperparameters.method_config["alpha"] == 8


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"method": hyperparameters(n_epochs=51)}, "method.supervised.hyperparameters.n_epochs"),
        ({"method": hyperparameters(n_epochs="x")}, "method.supervised.hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": 0}}, "hyperparameters.batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}},
         "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"nonsense": 0}}, "hyperparameters.nonsense"),
        ({"extra_body": {"rank": 65}}, "rank"),
        ({"extra_body": {"rank": 0}}, "rank"),
        ({"extra_body": {"method_config": {"rank": 65}}}, "method_config.rank"),
        ({"extra_body": {"method_config": {"ranks": 4}}}, "method_config"),
        ({"extra_body": {"target_modules": ["nope"]}}, "target_modules.0"),
        ({"extra_body": {"peft_method": "magic"}}, "peft_method"),
        ({"extra_body": {"optimizer": "magic"}}, "optimizer"),
        ({"extra_body": {"optimizer_config": {"weight_decay": -1}}},
         "optimizer_config.weight_decay"),
        ({"extra_body": {"lr_schedule": "wavy"}}, "lr_schedule"),
        ({"extra_body": {"learning_rate": 5}}, "learning_rate"),
        ({"extra_body": {"priority": 11}}, "priority"),
        ({"extra_body": {"lora_rank": 4}}, "lora_rank"),
        ({"extra_body": {"rank": 4}, "hyperparameters": {"rank": 8}}, "hyperparameters.rank"),
        ({"method": {"type": "dpo", "dpo": {}}}, "method.type"),
        ({"suffix": "a:b"}, "suffix"),
        ({"suffix": "a" * 65}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"training_file": "file-unknown"}, "training_file"),
        ({"validation_file": "file-unknown"}, "validation_file"),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused_by_name_and_creates_nothing(
    client: OpenAI, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **options)

    assert caught.value.param == param
    assert list(client.fine_tuning.jobs.list()) == []


def test_a_job_on_an_unknown_or_a_fine_tuned_model_is_refused(client: OpenAI) -> None:
    file = upload(client).id

    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.create(model="nope", training_file=file)
    with pytest.raises(openai.BadRequestError, match="name a base model"):
        client.fine_tuning.jobs.create(model=f"ft:{BASE}:a:b:c", training_file=file)


def test_a_file_of_another_tenant_or_purpose_cannot_be_trained_on(
    service: Service, client: OpenAI
) -> None:
    foreign = upload(service.client(service.tenant()[1])).id
    batch = client.files.create(file=("a", b"x"), purpose="batch").id

    for file in (foreign, batch):
        with pytest.raises(openai.BadRequestError) as caught:
            create(client, training_file=file)
        assert caught.value.param == "training_file"


def test_the_same_idempotency_key_makes_one_job(client: OpenAI) -> None:
    file = upload(client).id
    headers = {"Idempotency-Key": "train-once"}

    first = create(client, training_file=file, extra_headers=headers)
    again = create(client, training_file=file, extra_headers=headers)

    assert first.id == again.id
    assert len(list(client.fine_tuning.jobs.list())) == 1
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, training_file=file, suffix="other", extra_headers=headers)
    assert caught.value.code == "idempotency_mismatch"


def test_unfinished_jobs_of_a_tenant_are_limited(service: Service, client: OpenAI) -> None:
    file = upload(client).id
    for _ in range(service.settings.max_active_jobs):
        create(client, training_file=file)

    with pytest.raises(openai.RateLimitError):
        create(client, training_file=file)


def test_jobs_are_listed_in_pages_and_by_metadata(client: OpenAI) -> None:
    file = upload(client).id
    ids = [create(client, training_file=file, metadata={"k": str(i)}).id for i in range(3)]

    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == ids[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"k": "1"})] == [ids[1]]


def test_the_states_follow_cancel_pause_and_resume(service: Service, client: OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    first, second = create(client), create(client)
    training.start(service, second.id)

    assert jobs.cancel(first.id).status == "cancelled"
    assert jobs.pause(second.id).status == "running"  # its worker has to write a checkpoint first
    assert jobs.resume(second.id).status == "running"
    with pytest.raises(openai.BadRequestError) as caught:
        jobs.cancel(first.id)
    assert caught.value.code == "invalid_transition"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_events_carry_the_metrics_newest_first(service: Service, client: OpenAI) -> None:
    job = create(client)
    epoch = training.start(service, job.id)
    training.report(service, job.id, epoch, 1)
    training.report(service, job.id, epoch, 2)

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))

    assert len(events) >= 4
    metrics = [event for event in events if event.type == "metrics"]
    assert [event.data["step"] for event in metrics] == [2, 1]
    wanted = {"step", "total_steps", "train_loss", "train_mean_token_accuracy", "learning_rate"}
    wanted |= {"trained_tokens", "tokens_per_second", "eta_seconds"}
    assert wanted <= set(metrics[0].data)
    assert client.fine_tuning.jobs.retrieve(job.id).trained_tokens == 200


def test_events_can_be_followed_live(service: Service) -> None:
    key = service.tenant()[1]
    client = service.client(key)
    job = create(client)
    headers = {"authorization": f"Bearer {key}"}
    url = f"{service.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true"

    def follow() -> list[str]:
        with httpx.stream("GET", url, headers=headers, timeout=20) as response:
            return [line[6:] for line in response.iter_lines() if line.startswith("data: ")]

    with ThreadPoolExecutor(1) as executor:
        following = executor.submit(follow)
        epoch = training.start(service, job.id)
        training.report(service, job.id, epoch, 1)
        client.fine_tuning.jobs.cancel(job.id)
        service.thread.run(training.Leases(service.gateway.db).confirm_cancel(job.id, epoch))
        lines = following.result(20)

    events = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    assert events[0]["message"].startswith("Created")
    assert events[-1]["message"].endswith("cancelled.")
    assert [event["data"]["step"] for event in events if event["type"] == "metrics"] == [1]


def test_a_finished_job_is_a_model_by_every_name(
    service: Service, client: OpenAI, worker: FakeWorker
) -> None:
    job = finished_job(service, client)
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    name = job.fine_tuned_model

    assert job.status == "succeeded"
    assert name.startswith(f"ft:{BASE}:")
    assert checkpoints[-1].step_number == 5
    assert checkpoints[-1].metrics.train_loss == pytest.approx(0.2)
    names = [name, f"{name}:live", checkpoints[-1].fine_tuned_model_checkpoint]
    for model in names:
        answer = client.chat.completions.create(model=model, messages=HELLO)
        assert (answer.model, answer.choices[0].message.content) == (model, ANSWER)
    versions = [request.adapter.version for request in worker.requests if request.adapter]
    assert versions == [2, 2, 1]


def test_a_checkpoint_of_a_running_job_is_callable_but_the_plain_name_is_not(
    service: Service, client: OpenAI
) -> None:
    job = create(client)
    epoch = training.start(service, job.id)
    training.checkpoint(service, job.id, epoch, 5, final=False)

    checkpoint = client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
    name = checkpoint.fine_tuned_model_checkpoint

    assert client.chat.completions.create(model=name, messages=HELLO).choices
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=name.removesuffix(":ckpt-step-5"), messages=HELLO)


def test_models_are_listed_with_root_and_parent(service: Service, client: OpenAI) -> None:
    job = finished_job(service, client)

    base, adapter = client.models.list().data
    shown, below = base.model_dump(), adapter.model_dump()

    assert (shown["id"], shown["root"], shown["parent"]) == (BASE, BASE, None)
    assert (below["id"], below["root"], below["parent"]) == (job.fine_tuned_model, BASE, BASE)
    assert client.models.retrieve(BASE).id == BASE
    assert client.models.retrieve(job.fine_tuned_model) == adapter


def test_a_deleted_model_is_gone_with_its_files(service: Service, client: OpenAI) -> None:
    job = finished_job(service, client)

    assert client.models.delete(job.fine_tuned_model).deleted

    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=job.fine_tuned_model, messages=HELLO)
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete(BASE)


def test_another_tenant_sees_neither_job_nor_model(service: Service, client: OpenAI) -> None:
    job = finished_job(service, client)
    other = service.client(service.tenant()[1])
    jobs = other.fine_tuning.jobs

    calls = [
        lambda: jobs.retrieve(job.id),
        lambda: jobs.cancel(job.id),
        lambda: jobs.pause(job.id),
        lambda: jobs.resume(job.id),
        lambda: jobs.list_events(job.id),
        lambda: jobs.checkpoints.list(job.id),
        lambda: other.models.retrieve(job.fine_tuned_model),
        lambda: other.models.delete(job.fine_tuned_model),
        lambda: other.chat.completions.create(model=job.fine_tuned_model, messages=HELLO),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            call()
    assert [model.id for model in other.models.list()] == [BASE]


def test_an_adapter_has_a_url_of_its_own(service: Service, worker: FakeWorker) -> None:
    key = service.tenant()[1]
    job = finished_job(service, service.client(key))
    bound = service.client(key, f"/adapters/{job.adapter_id}/v1")
    foreign = service.client(service.tenant()[1], f"/adapters/{job.adapter_id}/v1")

    chat = bound.chat.completions.create(model="whatever", messages=HELLO)
    text = bound.completions.create(model="whatever", prompt="a")

    assert chat.model == text.model == job.fine_tuned_model
    assert all(request.adapter is not None for request in worker.requests)
    assert [model.id for model in bound.models.list()] == [job.fine_tuned_model]
    with pytest.raises(openai.NotFoundError):
        foreign.chat.completions.create(model="whatever", messages=HELLO)


def test_adapters_and_capabilities_are_shown(service: Service) -> None:
    key = service.tenant()[1]
    job = finished_job(service, service.client(key))
    headers = {"authorization": f"Bearer {key}"}

    adapters = service.http.get("/v1/adapters", headers=headers).json()["data"]
    one = service.http.get(f"/v1/adapters/{job.adapter_id}", headers=headers).json()
    capabilities = service.http.get("/v1/capabilities", headers=headers).json()

    assert one.pop("residency") == []
    assert adapters == [one]
    assert [version["step"] for version in one["versions"]] == [5, 10]
    assert one["final_version"] == 2
    assert capabilities["max_rank"] == 64
    assert set(capabilities["peft_methods"]) == {"lora"}
    assert capabilities["base_models"][0]["id"] == BASE
