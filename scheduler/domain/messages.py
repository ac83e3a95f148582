"""Everything that crosses a process border, as tagged unions decoded by type.

gateway --ToWorker--> agent --ToEngine--> engine child
gateway <--ToGateway-- agent <--FromEngine-- engine child

`message_codec` packs them; one that does not fit its schema is refused on arrival.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.adapter_tier import AdapterTier, Tier
from scheduler.domain.engine_stats import EngineStats, RequestSample, StepSample
from scheduler.domain.job import FinetuneSpec
from scheduler.domain.message import Message, Order, Report
from scheduler.domain.request import FinishReason, RequestBody
from scheduler.domain.service_class import BUILT_IN, ClassTargets

# ---- gateway -> worker -------------------------------------------------------------------


class Submit(Order):
    """Answer this request; send its frames to the stream `reply_to`."""

    type: Literal["submit"] = "submit"
    request: RequestBody
    reply_to: str


class RequestName(Report):
    """What is known of a request that cannot be read: its name."""

    request_id: str


class UnreadSubmit(Report):
    """A Submit of whatever version: whom to tell that it cannot be read."""

    type: Literal["submit"]
    request: RequestName
    reply_to: str


class Abort(Order):
    """The caller has left, or has all it wants: stop the request, or one of its sequences."""

    type: Literal["abort"] = "abort"
    request_id: str
    index: int | None = Field(None, description="None: every sequence of the request.")


class Replay(Order):
    """Send the frames of a request again, from sequence number `from_seq` on.

    Where they are gone an error comes instead, so that nobody waits for them.
    """

    type: Literal["replay"] = "replay"
    request_id: str
    reply_to: str
    from_seq: int


class Listening(Order):
    """A gateway reads `reply_to`: said again and again while it waits for answers from here."""

    type: Literal["listening"] = "listening"
    reply_to: str


class JobHint(Order):
    """Look at this job in SQL: it is new, or its wanted state changed."""

    type: Literal["job_hint"] = "job_hint"
    job_id: str


ToWorker = Annotated[Submit | Abort | Replay | Listening | JobHint, Field(discriminator="type")]


# ---- worker -> gateway -------------------------------------------------------------------


class TokenLogprobs(Report):
    """Log-probabilities at one position: the token itself and the best alternatives."""

    logprob: float
    rank: int
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class TokenFrame(Report):
    """What one engine step added to one sequence.

    `seq` counts the frames of a request from 0, so a reader sees gaps and duplicates.
    A frame with `finish_reason` is the sequence's last; a frame with `error` ends the request.
    """

    request_id: str
    index: int
    seq: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    num_kept_tokens: int | None = Field(
        None,
        description="Tokens that a KV head was left with when it was compressed last, on average, "
        "or the prompt's if it never was; None: no KV policy.",
    )
    num_dropped_tokens: int = Field(
        0, description="Tokens that it did not hold any more then, of prompt and answer."
    )
    error: str | None = None
    error_code: str | None = None


class Frames(Report):
    """All frames of one engine step for one gateway."""

    type: Literal["frames"] = "frames"
    reply_to: str
    frames: tuple[TokenFrame, ...]


ToGateway = Annotated[Frames, Field()]


# ---- agent -> engine ---------------------------------------------------------------------


class Generate(Order):
    """A request, with its adapters' artefacts already on this machine."""

    type: Literal["generate"] = "generate"
    request: RequestBody
    reply_to: str
    adapter_dirs: dict[str, str] = Field(
        default_factory=dict, description="Digest of an adapter -> folder of its artefact."
    )


class StartJob(Order):
    """Train: the job is leased, its data sets and its newest checkpoint are on this machine."""

    type: Literal["start_job"] = "start_job"
    job_id: str
    tenant_id: str
    epoch: int = Field(description="Fencing epoch of the lease; comes back in every report.")
    spec: FinetuneSpec
    train_path: str
    valid_path: str | None = None
    checkpoint_root: str = Field(description="Folder for `step-N` checkpoints of this epoch.")
    resume_from: str | None = Field(None, description="A complete checkpoint folder.")
    tenant_weight: float = Field(1.0, gt=0)


class StopJob(Order):
    """Stop training this job; with `checkpoint`, write one first."""

    type: Literal["stop_job"] = "stop_job"
    job_id: str
    checkpoint: bool = False


class Drain(Order):
    """Take no new work, finish streams, checkpoint jobs, then end."""

    type: Literal["drain"] = "drain"


ToEngine = Annotated[
    Generate | Abort | Replay | StartJob | StopJob | Drain, Field(discriminator="type")
]


# ---- engine -> agent ---------------------------------------------------------------------


class BaseModelInfo(Report):
    """A base model that a worker holds."""

    id: str
    digest: str
    max_model_len: int
    vocab_size: int
    num_parameters: int
    dtype: str
    weight_format: str = Field(
        "none", description="How the weights of its linears are held; `none`: in the dtype."
    )

    @property
    def fingerprint(self) -> str:
        """Changes when the weights change, or how they are held."""
        held_as = "" if self.weight_format == "none" else f"_{self.weight_format}"
        return f"fp_{self.digest[:12]}{held_as}"


class WorkerCapabilities(Report):
    """What a worker can do: plug-in name -> JSON Schema of its options."""

    base_models: tuple[BaseModelInfo, ...]
    peft_methods: dict[str, dict[str, Any]]
    optimizers: dict[str, dict[str, Any]]
    objectives: dict[str, dict[str, Any]]
    kv_policies: dict[str, dict[str, Any]] = Field(default_factory=dict)
    codecs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    ladders: dict[str, dict[str, Any]] = Field(default_factory=dict)
    merges: dict[str, dict[str, Any]] = Field(default_factory=dict)
    max_rank: int
    max_num_sequences: int
    service_classes: dict[str, ClassTargets] = Field(
        default_factory=lambda: {name: ClassTargets() for name in BUILT_IN}
    )


class EngineReady(Report):
    """The engine is up and takes work."""

    type: Literal["engine_ready"] = "engine_ready"
    capabilities: WorkerCapabilities


class JobProgress(Report):
    """One optimizer step (or one validation pass) of a job, as its `metrics` event tells it."""

    type: Literal["job_progress"] = "job_progress"
    job_id: str
    epoch: int
    step: int
    total_steps: int
    train_loss: float
    train_mean_token_accuracy: float
    learning_rate: float
    trained_tokens: int
    tokens_per_second: float
    eta_seconds: float
    grad_norm: float
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None


class CheckpointWritten(Report):
    """A complete checkpoint lies in `path`; its `adapter/` folder is a peft artefact.

    The last one of a job has `final`: the agent publishes the adapter and ends the job.
    """

    type: Literal["checkpoint_written"] = "checkpoint_written"
    job_id: str
    epoch: int
    step: int
    path: str
    adapter_digest: str
    num_bytes: int
    trained_tokens: int
    metrics: dict[str, float]
    final: bool = False


class JobStopped(Report):
    """The engine trains this job no more: asked to (`error` None), or it failed."""

    type: Literal["job_stopped"] = "job_stopped"
    job_id: str
    epoch: int
    error: str | None = None
    error_code: str | None = None


FromEngine = Annotated[
    EngineReady | Frames | JobProgress | CheckpointWritten | JobStopped | EngineStats,
    Field(discriminator="type"),
]


# ---- worker registry ---------------------------------------------------------------------


class WorkerInfo(Report):
    """What an agent announces about itself, with a time to live."""

    worker_id: str
    boot_id: str = Field(description="New at every start, part of the inbox's name.")
    capabilities: WorkerCapabilities
    stats: EngineStats | None = None
    disk: AdapterTier | None = None

    @property
    def adapter_tiers(self) -> tuple[AdapterTier, ...]:
        """Where the worker keeps adapters, nearest to the device first."""
        engine = () if self.stats is None else self.stats.adapter_tiers
        return engine if self.disk is None else (*engine, self.disk)

    def nearest_tier(self, digest: str) -> Tier | None:
        """The first tier that is told to hold an adapter."""
        return next((t.tier for t in self.adapter_tiers if t.holds(digest)), None)

    @property
    def inbox(self) -> str:
        """Stream that this worker reads."""
        return f"in:{self.worker_id}:{self.boot_id}"


TO_WORKER: TypeAdapter[ToWorker] = TypeAdapter(ToWorker)
TO_GATEWAY: TypeAdapter[ToGateway] = TypeAdapter(ToGateway)
UNREAD_SUBMIT: TypeAdapter[UnreadSubmit] = TypeAdapter(UnreadSubmit)
TO_ENGINE: TypeAdapter[ToEngine] = TypeAdapter(ToEngine)
FROM_ENGINE: TypeAdapter[FromEngine] = TypeAdapter(FromEngine)


__all__ = [
    "FROM_ENGINE",
    "TO_ENGINE",
    "TO_GATEWAY",
    "TO_WORKER",
    "UNREAD_SUBMIT",
    "Abort",
    "AdapterRef",
    "BaseModelInfo",
    "CheckpointWritten",
    "Drain",
    "EngineReady",
    "EngineStats",
    "Frames",
    "FromEngine",
    "Generate",
    "JobHint",
    "JobProgress",
    "JobStopped",
    "Listening",
    "Message",
    "Replay",
    "RequestSample",
    "StartJob",
    "StepSample",
    "StopJob",
    "Submit",
    "ToEngine",
    "ToGateway",
    "ToWorker",
    "TokenFrame",
    "TokenLogprobs",
    "WorkerCapabilities",
    "WorkerInfo",
]
