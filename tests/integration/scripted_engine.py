"""An engine child without tensors: speaks the real protocol and does what it is told.

A prompt's first token says how to answer: DIE ends the process after one token, HANG answers one
token and no more, any other prompt is echoed. A job's `method_config` says how to train: `die_at`,
`fail_at` (a step), `hold_at` (a step to wait at until told to stop). It trains `n_epochs` steps
and writes a checkpoint after each.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from scheduler.domain.adapter import AdapterManifest
from scheduler.domain.messages import (
    Abort,
    BaseModelInfo,
    CheckpointWritten,
    Drain,
    EngineReady,
    EngineStats,
    Frames,
    Generate,
    JobProgress,
    JobStopped,
    StartJob,
    StopJob,
    ToEngine,
    TokenFrame,
    WorkerCapabilities,
)
from workers.engine_process import ConnectionClosed, EngineConnection

DIE, HANG = 666, 555
BASE_MODEL = "tiny"
CAPABILITIES = WorkerCapabilities(
    base_models=(
        BaseModelInfo(
            id=BASE_MODEL,
            digest="d" * 64,
            max_model_len=512,
            vocab_size=1000,
            num_parameters=10,
            dtype="float32",
        ),
    ),
    peft_methods={"lora": {}},
    optimizers={"adamw": {}},
    objectives={"supervised": {}},
    max_rank=8,
    max_num_sequences=4,
)


class ScriptedEngine:
    """The loop of an engine, with scripts in place of a model."""

    def __init__(self, connection: EngineConnection) -> None:
        self.connection = connection
        self.jobs: dict[str, StartJob] = {}
        self.steps: dict[str, int] = {}
        self.is_draining = False

    def run(self) -> None:
        """Obey until drained or left alone."""
        self.connection.send(EngineReady(capabilities=CAPABILITIES))
        self.connection.send(_stats())
        while not self.is_draining:
            for order in self.connection.poll(0.01):
                self.obey(order)
            for job in list(self.jobs.values()):
                self.train(job)

    def obey(self, order: ToEngine) -> None:
        """Do what the agent says."""
        if isinstance(order, Generate):
            self.generate(order)
        elif isinstance(order, StartJob):
            self.jobs[order.job_id] = order
            self.steps[order.job_id] = _resumed_step(order)
        elif isinstance(order, StopJob) and order.job_id in self.jobs:
            self.stop(self.jobs[order.job_id], checkpoint=order.checkpoint)
        elif isinstance(order, Abort):
            note(f"abort {order.request_id}")
        elif isinstance(order, Drain):
            for job in list(self.jobs.values()):
                self.stop(job, checkpoint=True)
            self.is_draining = True

    def generate(self, order: Generate) -> None:
        """Echo the prompt, or misbehave as it says."""
        prompt = order.request.prompt_token_ids
        frame = TokenFrame(request_id=order.request.request_id, index=0, seq=0, token_ids=prompt)
        if prompt[0] not in (DIE, HANG):
            adapter = sum(len(list(Path(path).iterdir())) for path in order.adapter_dirs.values())
            frame = frame.model_copy(
                update={"token_ids": (*prompt, adapter), "finish_reason": "stop"}
            )
        self.connection.send(Frames(reply_to=order.reply_to, frames=(frame,)))
        if prompt[0] == DIE:
            self.connection.close()
            os._exit(9)

    def train(self, job: StartJob) -> None:
        """One step of a job."""
        script, step = job.spec.method_config, self.steps[job.job_id] + 1
        if step == script.get("hold_at"):
            return
        if step == script.get("die_at"):
            self.connection.close()
            os._exit(9)
        if step == script.get("fail_at"):
            del self.jobs[job.job_id]
            self.connection.send(
                JobStopped(
                    job_id=job.job_id,
                    epoch=job.epoch,
                    error="Loss is NaN.",
                    error_code="not_finite",
                )
            )
            return
        self.steps[job.job_id] = step
        self.connection.send(_progress(job, step))
        is_last = step == job.spec.n_epochs
        self.checkpoint(job, step, final=is_last)
        if is_last:
            del self.jobs[job.job_id]

    def stop(self, job: StartJob, *, checkpoint: bool) -> None:
        """End a job early."""
        if checkpoint:
            self.checkpoint(job, self.steps[job.job_id], final=False)
        del self.jobs[job.job_id]
        self.connection.send(JobStopped(job_id=job.job_id, epoch=job.epoch))

    def checkpoint(self, job: StartJob, step: int, *, final: bool) -> None:
        """Write the files of a checkpoint and report it."""
        folder = Path(job.checkpoint_root) / f"step-{step}{'-final' if final else ''}"
        digest, num_bytes = write_adapter(folder / "adapter", f"{job.job_id} {step}".encode())
        (folder / "manifest.json").write_text(json.dumps({"step": step}))
        self.connection.send(
            CheckpointWritten(
                job_id=job.job_id,
                epoch=job.epoch,
                step=step,
                path=str(folder),
                adapter_digest=digest,
                num_bytes=num_bytes,
                trained_tokens=10 * step,
                metrics={"train_loss": 1 / step if step else 9.0},
                final=final,
            )
        )


def write_adapter(folder: Path, content: bytes) -> tuple[str, int]:
    """Write an artefact with its manifest; its digest and size."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(content)
    (folder / "adapter_config.json").write_text("{}")
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    digest = hashlib.sha256(content).hexdigest()
    manifest = AdapterManifest(
        base_model=BASE_MODEL,
        base_digest="d" * 64,
        digest=digest,
        num_bytes=len(content),
        files=files,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return digest, len(content)


def note(line: str) -> None:
    """Leave a line for the test to read."""
    with Path(os.environ["SCRIPTED_ENGINE_DIARY"]).open("a") as file:
        file.write(line + "\n")


def _resumed_step(job: StartJob) -> int:
    note(f"start {job.job_id} epoch {job.epoch} {Path(job.train_path).read_text()}")
    if job.resume_from is None:
        return 0
    step: int = json.loads((Path(job.resume_from) / "manifest.json").read_text())["step"]
    return step


def _progress(job: StartJob, step: int) -> JobProgress:
    return JobProgress(
        job_id=job.job_id,
        epoch=job.epoch,
        step=step,
        total_steps=job.spec.n_epochs,
        train_loss=1 / step,
        train_mean_token_accuracy=0.5,
        learning_rate=1e-4,
        trained_tokens=10 * step,
        tokens_per_second=100.0,
        eta_seconds=1.0,
        grad_norm=1.0,
    )


def _stats() -> EngineStats:
    return EngineStats(
        num_running=0,
        num_waiting=0,
        kv_usage=0.25,
        num_free_blocks=3,
        num_blocks=4,
        num_preemptions=0,
        active_jobs=(),
    )


def main() -> None:
    """Run as a child of an agent."""
    connection = EngineConnection.from_environment()
    if "SCRIPTED_ENGINE_EXIT" in os.environ:
        raise SystemExit(int(os.environ["SCRIPTED_ENGINE_EXIT"]))
    try:
        ScriptedEngine(connection).run()
    except ConnectionClosed:
        return
    connection.close()


if __name__ == "__main__":
    main()
