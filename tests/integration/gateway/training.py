"""Jobs made and taken through their life as the scheduler and an agent would, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.domain.messages import JobProgress
from scheduler.store.checks import Checks
from scheduler.store.leases import CheckpointCommit, Leases
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.integration.gateway.conftest import Service

CONTENT = b'{"messages": []}\n'


def start(service: Service, job_id: str) -> int:
    """Check the job's files and claim it; returns the lease's epoch."""
    return int(service.thread.run(_start(service, job_id)))


async def _start(service: Service, job_id: str) -> int:
    checks = Checks(service.gateway.db)
    check = await checks.begin(job_id)
    assert check is not None
    await checks.succeed(check, train_key="datasets/t", valid_key=None, message="Files checked.")
    leased = await Leases(service.gateway.db).claim(job_id, "w1")
    assert leased is not None
    return leased.epoch


def report(service: Service, job_id: str, epoch: int, step: int) -> None:
    """Record one optimizer step."""
    progress = JobProgress(
        job_id=job_id,
        epoch=epoch,
        step=step,
        total_steps=10,
        train_loss=1.0 / step,
        train_mean_token_accuracy=0.5,
        learning_rate=1e-4,
        trained_tokens=100 * step,
        tokens_per_second=50.0,
        eta_seconds=9.0,
        grad_norm=1.0,
    )
    service.thread.run(Leases(service.gateway.db).record_progress(progress))


def checkpoint(service: Service, job_id: str, epoch: int, step: int, *, final: bool) -> None:
    """Commit a checkpoint with an artefact in the object store; the final one ends the job."""
    service.thread.run(_checkpoint(service, job_id, epoch, step, final))


async def _checkpoint(service: Service, job_id: str, epoch: int, step: int, final: bool) -> None:
    leases = Leases(service.gateway.db)
    uri = f"adapters/{job_id}/v{step}"
    await service.gateway.objects.put_bytes(f"{uri}/adapter_config.json", b"{}")
    commit = CheckpointCommit(
        step=step,
        adapter_uri=uri,
        adapter_digest=f"{step:064x}",
        num_bytes=2,
        trained_tokens=100 * step,
        metrics={"train_loss": 1.0 / step},
    )
    end = leases.finish if final else leases.commit_checkpoint
    await end(job_id, epoch, commit)


def upload(client: OpenAI, name: str = "data.jsonl", content: bytes = CONTENT, **kw: Any) -> Any:
    """Upload a training file."""
    return client.files.create(file=(name, content), purpose="fine-tune", **kw)


def create(client: OpenAI, **options: Any) -> Any:
    """Start a job on a new file."""
    file = options.pop("training_file", None) or upload(client).id
    return client.fine_tuning.jobs.create(model=BASE, training_file=file, **options)


def finished_job(service: Service, client: OpenAI) -> Any:
    """A job with a checkpoint at step 5 that has succeeded at step 10."""
    job = create(client, suffix="mine")
    epoch = start(service, job.id)
    checkpoint(service, job.id, epoch, 5, final=False)
    checkpoint(service, job.id, epoch, 10, final=True)
    return client.fine_tuning.jobs.retrieve(job.id)
