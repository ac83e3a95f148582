"""/v1/admin/workers: what each worker holds and how it does."""

from typing import Literal

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
    active_jobs: tuple[str, ...]
    resident_adapters: tuple[str, ...]


class WorkerRead(Read):
    """A live worker."""

    id: str
    object: Literal["worker"] = "worker"
    boot_id: str
    base_models: list[str]
    service_classes: dict[str, ClassTargets]
    load: WorkerLoad | None
    slo: tuple[SloTotals, ...]
