"""/v1/fine_tuning/jobs: what callers send and see."""

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from service.schemas.adapter_order import CompressOptions
from service.schemas.base import Body, Read
from service.schemas.evaluation import PromoteIf
from service.schemas.options import Options, OptionsBody

Metadata = dict[str, str]
ModuleName = Annotated[str, Field(max_length=64)]
DEFAULT_POINTS = 200
MaxPoints = Annotated[int, Query(ge=2, le=1000, description="Most points of the answer.")]


def _none_for_auto(value: Any) -> Any:
    """`auto` asks for the default, as leaving the field out does."""
    return None if value == "auto" else value


def _check_metadata(metadata: Any) -> Any:
    if metadata is None:
        return None
    good = isinstance(metadata, dict) and all(
        isinstance(key, str) and isinstance(value, str) and len(key) <= 64 and len(value) <= 512
        for key, value in metadata.items()
    )
    if not good or len(metadata) > 16:
        raise PydanticCustomError(
            "metadata",
            "Must be at most 16 pairs of strings, keys up to 64 and values up to 512 characters",
        )
    return metadata


AutoInt = Annotated[
    int | None,
    BeforeValidator(_none_for_auto, json_schema_input_type=int | Literal["auto"] | None),
]
AutoFloat = Annotated[
    float | None,
    BeforeValidator(_none_for_auto, json_schema_input_type=float | Literal["auto"] | None),
]


class TrainingExtras(Body):
    """Options beyond OpenAI's; in `hyperparameters` or at the top of the body, all optional."""

    peft_method: str | None = Field(
        None, max_length=64, description="How to adapt; see /v1/capabilities."
    )
    method_config: Options | None = Field(None, description="Options of the method.")
    rank: int | None = Field(None, description="Short for method_config.rank.")
    alpha: float | None = Field(None, description="Short for method_config.alpha.")
    target_modules: list[ModuleName] | None = Field(
        None, max_length=64, description="Short for the method's option."
    )
    optimizer: str | None = Field(None, max_length=64, description="See /v1/capabilities.")
    optimizer_config: Options | None = Field(None, description="Options of the optimizer.")
    weight_decay: float | None = Field(None, description="Short for optimizer_config.weight_decay.")
    learning_rate: float | None = Field(None, description="Instead of the multiplier.")
    lr_schedule: str | None = Field(None, description="linear, cosine or constant.")
    warmup_ratio: float | None = Field(None, description="Share of steps that warm up.")
    max_grad_norm: float | None = Field(None, description="Gradients are clipped to this norm.")
    gradient_accumulation_steps: int | None = Field(None, description="Batches per step.")
    checkpoint_every_steps: int | None = Field(None, description="Steps between checkpoints.")
    eval_every_steps: int | None = Field(None, description="Steps between validation passes.")
    deterministic: bool | None = Field(None, description="Bit-equal at any load, and slower.")
    priority: int | None = Field(None, description="Higher starts earlier, -10 to 10.")
    max_share: float | None = Field(None, description="Largest share of training time.")


class Hyperparameters(TrainingExtras):
    """OpenAI's three, `auto` allowed, and the extras."""

    n_epochs: AutoInt = Field(None, description="1 to 50; auto is 3.")
    batch_size: AutoInt = Field(None, description="1 to 256; auto is 8.")
    learning_rate_multiplier: AutoFloat = Field(None, description="Times 2e-4; auto is 1.")


class SupervisedMethod(Body):
    """Options of supervised fine-tuning."""

    hyperparameters: Hyperparameters | None = None


class MethodCreate(OptionsBody):
    """What to learn from the data."""

    type: str = Field(max_length=64, description="`supervised`.")
    supervised: SupervisedMethod | None = None


class JobCreate(TrainingExtras):
    """A job to start."""

    model: str = Field(min_length=1, max_length=512, description="Id of a base model.")
    training_file: str = Field(min_length=1, max_length=128, description="Id of a file.")
    validation_file: str | None = Field(None, min_length=1, max_length=128)
    suffix: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Part of the adapter's name: letters, digits and . _ -",
    )
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    method: MethodCreate | None = None
    hyperparameters: Hyperparameters | None = Field(
        None, description="The older place.", json_schema_extra={"deprecated": True}
    )
    integrations: list[Options] | None = None
    metadata: Annotated[Metadata | None, BeforeValidator(_check_metadata)] = None
    compress: CompressOptions | None = Field(
        None,
        description="Make a compressed version of the result; quality is measured on the "
        "validation file.",
    )
    promote_if: PromoteIf | None = Field(
        None,
        description="Evaluate the result; only if all rules hold does the adapter's name answer.",
    )


class JobErrorRead(Read):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobRead(Read):
    """OpenAI's job object."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobErrorRead | None
    estimated_finish: int | None
    fine_tuned_model: str | None = Field(description="Set once the job has succeeded.")
    finished_at: int | None
    hyperparameters: dict[str, Any]
    integrations: list[dict[str, Any]] = Field(default_factory=list)
    metadata: Metadata
    method: dict[str, Any] | None
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: str
    suffix: str | None
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    adapter_id: str = Field(description="Extension; the adapter's own URL is /adapters/ID/v1.")


class EventRead(Read):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class CurvePointRead(Read):
    """One optimizer step of a job."""

    step: int
    total_steps: int
    train_loss: float
    valid_loss: float | None = Field(description="Of the steps that were followed by a validation.")
    learning_rate: float
    trained_tokens: int
    tokens_per_second: float
    eta_seconds: float


class CheckpointRead(Read):
    """A checkpoint, callable as a model."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float | None]
