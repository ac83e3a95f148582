"""Who takes part in an evaluation: the candidate, what answers now, and the bare base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from scheduler.domain.evaluation import Contender
    from scheduler.store.adapters import Adapter, TenantAdapters
    from scheduler.store.evaluations import EvaluationWork
    from service.catalogue import Catalogue, ServedModel


@dataclass(frozen=True, slots=True)
class Contenders:
    """The models of one evaluation, all of one base model.

    Attributes:
        models: without `current` where nothing answers yet but the base.
        live_before: the version of the candidate's adapter that was live.
    """

    models: dict[Contender, ServedModel]
    live_before: int | None


async def find_contenders(
    work: EvaluationWork, adapters: TenantAdapters, catalogue: Catalogue
) -> Contenders:
    """What the names in an evaluation mean now.

    Raises:
        NotFound: the tenant may not call the candidate any more.
        ModelNotFound: or what it is to be compared with.
        InvalidInput: that belongs to another base model.
    """
    adapter = await adapters.get(work.adapter_id)
    candidate = await catalogue.find(_versioned(adapter, work.version), adapters)
    base = await catalogue.find(adapter.base_model, adapters)
    models: dict[Contender, ServedModel] = {"candidate": candidate, "base": base}
    name = work.plan.current
    if name is None and adapter.published_version is not None:
        name = _versioned(adapter, adapter.published_version)
    if name is not None:
        models["current"] = await catalogue.find(name, adapters)
    if {model.base_model for model in models.values()} != {base.base_model}:
        raise InvalidInput(f"{name!r} does not belong to {base.base_model!r} any more.")
    return Contenders(models, adapter.live_version)


def _versioned(adapter: Adapter, version: int) -> str:
    return f"{adapter.model_name}@{version}"
