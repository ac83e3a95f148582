"""What a fine-tuning job was asked to do, and the states it may pass through."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from scheduler.domain.adapter_order import Compression
from scheduler.domain.errors import InvalidTransition
from scheduler.domain.evaluation import EvaluationPlan


class JobStatus(StrEnum):
    """OpenAI's states, and `paused`."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_NEXT: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING_FILES: frozenset(
        {JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.QUEUED: frozenset(
        {JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED, JobStatus.FAILED}
    ),
    JobStatus.RUNNING: frozenset(
        {
            JobStatus.QUEUED,  # the worker was lost or drained: the job resumes from its checkpoint
            JobStatus.PAUSED,
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
        }
    ),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
}


def check_transition(job_id: str, current: JobStatus, wanted: JobStatus) -> None:
    """Refuse a step that the state machine does not have.

    Raises:
        InvalidTransition: `wanted` cannot follow `current`.
    """
    if wanted not in _NEXT.get(current, frozenset()):
        raise InvalidTransition(
            f"Job {job_id} is {current}; it cannot become {wanted}.", job_id=job_id
        )


def is_final(status: JobStatus) -> bool:
    """Whether nothing can follow `status`."""
    return status not in _NEXT


class FinetuneSpec(BaseModel):
    """What one job trains, every `auto` already resolved to a number. Never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: str
    method: str = "lora"
    method_config: dict[str, object] = Field(default_factory=dict)
    optimizer: str = "adamw"
    optimizer_config: dict[str, object] = Field(default_factory=dict)
    objective: str = "supervised"
    n_epochs: int = Field(3, ge=1, le=50)
    batch_size: int = Field(8, ge=1, le=256, description="Examples per micro-batch.")
    gradient_accumulation_steps: int = Field(1, ge=1, le=256)
    learning_rate: float = Field(2e-4, gt=0, le=1)
    lr_schedule: str = Field("linear", pattern="^(linear|cosine|constant)$")
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    checkpoint_every_steps: int = Field(50, ge=1, le=2**31 - 1)
    checkpoint_every_s: float = Field(60.0, gt=0)
    eval_every_steps: int = Field(50, ge=1, le=2**31 - 1)
    deterministic: bool = False
    priority: int = Field(0, ge=-10, le=10)
    max_share: float = Field(1.0, gt=0, le=1)
    compress: Compression | None = Field(
        None, description="Made of the final version once the job has succeeded."
    )
    promote_if: EvaluationPlan | None = Field(
        None, description="What the final version must show before the adapter's name answers."
    )

    @property
    def examples_per_step(self) -> int:
        """Examples behind one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps
