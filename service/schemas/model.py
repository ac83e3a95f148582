"""/v1/models and /v1/capabilities."""

from typing import Any, Literal

from scheduler.domain.messages import BaseModelInfo
from scheduler.domain.service_class import ClassTargets
from service.schemas.base import Read


class ModelRead(Read):
    """A model that can be called by `id`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None = None
    shared_by: str | None = None


class Capabilities(Read):
    """What the live workers can do: plug-in name -> JSON Schema of its options."""

    object: Literal["capabilities"] = "capabilities"
    base_models: list[BaseModelInfo]
    peft_methods: dict[str, dict[str, Any]]
    optimizers: dict[str, dict[str, Any]]
    objectives: dict[str, dict[str, Any]]
    kv_policies: dict[str, dict[str, Any]]
    codecs: dict[str, dict[str, Any]]
    ladders: dict[str, dict[str, Any]]
    merges: dict[str, dict[str, Any]]
    graders: dict[str, dict[str, Any]]
    service_classes: dict[str, ClassTargets]
    max_rank: int
