"""Everything an operator may set on a worker."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, field_validator, model_validator

from scheduler.domain.service_class import BEST_EFFORT, DEFAULT, ClassTargets, check_declared
from scheduler.settings import LogSettings, StoreSettings, TextSettings

if TYPE_CHECKING:
    from pathlib import Path


def _default_worker_id(settings: dict[str, Any]) -> str:
    return f"{socket.gethostname()}-{settings['device'].replace(':', '')}"


class EngineSettings(TextSettings, LogSettings):
    """What the engine child needs to know."""

    device: str = Field("cpu", pattern=r"^(cpu|cuda:\d+)$", description="Where tensors live.")
    dtype: str = Field(
        "auto",
        pattern="^(auto|float32|bfloat16|float16)$",
        description="Of weights and K/V; `auto`: bfloat16 where the device has it, or float32.",
    )
    weight_format: str = Field(
        "none",
        pattern="^[a-z0-9_]+$",
        description="How the base models' linears are held: `none` (in the dtype), `int8`, `int4` "
        "or `fp8`; those need torchao.",
    )
    num_threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="CPU threads of the engine."
    )
    tensor_parallel: int = Field(
        1, ge=1, description="Processes that share each base model, each with its own threads."
    )
    group_address: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]+:\d{1,5}$",
        description="HOST:PORT of a worker whose other ranks run on other machines, one on each; "
        "without it they run here.",
    )
    max_batched_tokens: int = Field(
        2048, ge=16, description="Most inference tokens of one engine step."
    )
    max_num_sequences: int = Field(64, ge=1, description="Most sequences that run at once.")
    page_tokens: int = Field(32, ge=1, description="Tokens of one K/V page.")
    kv_cache_tokens: int = Field(
        65_536,
        ge=64,
        description="Memory for K/V and training, as tokens of K/V, per base model.",
    )
    kv_cache_bytes: int | None = Field(
        None, gt=0, description="The same in bytes, in place of kv_cache_tokens."
    )
    kv_policy: dict[str, Any] | None = Field(
        None, description="JSON: KV policy of requests that name none; see `kv_policy` in api.md."
    )
    prefix_caching: bool = Field(
        True, description="Keep the K/V of ended requests for others that begin with the same text."
    )
    adapter_slots: int = Field(32, ge=1, description="Adapters that are resident at once.")
    adapter_ram_bytes: int = Field(
        2 * 2**30, ge=0, description="Host memory for adapters on their way to and from the slots."
    )
    max_rank: int = Field(64, ge=1, description="Largest adapter rank that is accepted.")
    training_memory_bytes: int = Field(
        2 * 2**30, gt=0, description="Most of it that training may borrow."
    )
    max_jobs: int = Field(8, ge=0, description="Fine-tuning jobs that train at once.")
    ttft_ms: float = Field(500.0, gt=0, description="Target time to first token.")
    tpot_ms: float = Field(50.0, gt=0, description="Target mean time per output token.")
    slo_classes: dict[str, ClassTargets] = Field(
        default_factory=dict,
        description="JSON: targets of further service classes, by name; a tenant is in one class.",
    )

    @field_validator("slo_classes")
    @classmethod
    def _may_be_declared(cls, classes: dict[str, ClassTargets]) -> dict[str, ClassTargets]:
        check_declared(classes)
        return classes

    @model_validator(mode="after")
    def _group_can_run(self) -> Self:
        if self.tensor_parallel > 1 and (self.device != "cpu" or self.kv_policy is not None):
            raise ValueError("tensor_parallel works on the CPU, without kv_policy.")
        return self

    def common(self) -> dict[str, Any]:
        """What all ranks of a group must be set to alike."""
        own = set(TextSettings.model_fields) | set(LogSettings.model_fields)
        return self.model_dump(mode="json", include=set(EngineSettings.model_fields) - own)

    def service_classes(self) -> dict[str, ClassTargets]:
        """Targets by service class, those that are always there included."""
        return {
            DEFAULT: ClassTargets(ttft_ms=self.ttft_ms, tpot_ms=self.tpot_ms),
            BEST_EFFORT: ClassTargets(),
            **self.slo_classes,
        }


class FollowerSettings(EngineSettings):
    """What the other machines of a group need to know: what the worker does, and who they are."""

    group_rank: int = Field(
        1, ge=1, description="Which rank of its group this machine runs; the worker's is 0."
    )

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if self.group_address is None or self.group_rank >= self.tensor_parallel:
            raise ValueError("A follower needs group_address, and group_rank < tensor_parallel.")
        return self


class WorkerSettings(EngineSettings, StoreSettings):
    """What a worker's agent and its engine child need to know."""

    worker_id: str = Field(
        default_factory=_default_worker_id,
        pattern="^[A-Za-z0-9._-]+$",
        description="Name in the registry; unique among all workers. Default: host and device.",
    )
    lease_s: float = Field(30.0, gt=0, description="A job unheard of for this long is taken away.")
    renew_every_s: float = Field(5.0, gt=0, description="How often leases are renewed.")
    claim_every_s: float = Field(1.0, gt=0, description="How often queued jobs are looked for.")
    announce_every_s: float = Field(1.0, gt=0, description="How often the registry is told.")
    announce_ttl_s: float = Field(4.0, gt=0, description="The registry forgets a worker after.")
    gateway_silence_s: float = Field(
        15.0, gt=0, description="The requests of a gateway unheard of for this long are stopped."
    )
    engine_start_timeout_s: float = Field(
        600.0, gt=0, description="Longest time to load the base models."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="Time for running streams and checkpoints after SIGTERM."
    )
    max_engine_deaths: int = Field(
        3, ge=1, description="The worker gives up after so many engine deaths within a minute."
    )
    adapter_cache_bytes: int = Field(
        20 * 2**30, gt=0, description="Disk space for adapters fetched from the object store."
    )

    def engine_environment(self) -> dict[str, str]:
        """Variables that give the engine child the same settings as these."""
        values = self.model_dump(mode="json", include=set(EngineSettings.model_fields))
        return {
            f"TANDEM_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
            if value is not None
        }

    @property
    def work_dir(self) -> Path:
        """Scratch of this worker: data sets and checkpoints of the jobs it runs."""
        return self.data_dir / "work" / self.worker_id

    @property
    def adapter_cache_dir(self) -> Path:
        """Adapters by content digest, shared by the workers of a machine."""
        return self.data_dir / "cache" / "adapters"
