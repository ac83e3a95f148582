"""/v1/admin/workers: what each worker holds and how it does."""

from typing import Literal

from pydantic import Field

from scheduler.domain.adapter_tier import AdapterTier
from scheduler.domain.engine_stats import SloTotals
from scheduler.domain.service_class import ClassTargets
from service.schemas.base import Read


class WorkerLoad(Read):
    """What a worker does at the moment."""

    num_running: int
    num_waiting: int
    kv_usage: float
    training_usage: float
    num_preemptions: int
    prefix_queries: int = Field(description="Total of tokens looked up in the prefix cache.")
    prefix_hits: int = Field(description="Total of those found.")
    kv_kept_tokens: int = Field(description="Total of prompt tokens that KV policies kept.")
    kv_dropped_tokens: int = Field(description="Total of those that they dropped.")
    generation_tokens: int = Field(description="Total since the engine started.")
    trained_tokens: int = Field(description="Total since the engine started.")
    active_jobs: tuple[str, ...]


class WorkerRead(Read):
    """A live worker."""

    id: str
    object: Literal["worker"] = "worker"
    boot_id: str
    base_models: list[str]
    service_classes: dict[str, ClassTargets]
    load: WorkerLoad | None
    adapter_tiers: tuple[AdapterTier, ...] = Field(description="Nearest to the device first.")
    slo: tuple[SloTotals, ...]
