"""/v1/models, also under an adapter's own URL."""

from fastapi import APIRouter

from scheduler.domain.errors import AdapterInUse, Conflict, ModelNotFound, PermissionDenied
from scheduler.store.adapters import Adapter
from service.adapter_removal import remove_adapter
from service.auth import CurrentTenant
from service.catalogue import Catalogue
from service.deps import CatalogueDep, EnginesDep, ModelDoorDep, ObjectsDep
from service.errors import errors
from service.schemas.base import Deleted, ListPage
from service.schemas.model import ModelRead

router = APIRouter(tags=["models"])

OWNER = "tandem"


def _read_base(name: str, catalogue: Catalogue) -> ModelRead:
    return ModelRead(
        id=name,
        created=catalogue.created_at,
        owned_by=OWNER,
        root=name,
        parent=None,
        max_model_len=catalogue.max_model_len(name),
    )


def _read_adapter(adapter: Adapter, name: str, tenant_name: str, catalogue: Catalogue) -> ModelRead:
    return ModelRead(
        id=name,
        created=adapter.created_at,
        owned_by=adapter.shared_by or tenant_name,
        root=adapter.base_model,
        parent=adapter.base_model,
        max_model_len=catalogue.max_model_len(adapter.base_model),
        shared_by=adapter.shared_by,
    )


@router.get("/models", responses=errors())
async def list_models(
    tenant: CurrentTenant, models: ModelDoorDep, catalogue: CatalogueDep
) -> ListPage[ModelRead]:
    """List base models, then the tenant's finished adapters and those shared with it."""
    adapters = [
        _read_adapter(adapter, adapter.model_name, tenant.name, catalogue)
        for adapter in await models.adapters.published()
        if models.bound_to in (None, adapter.model_name)
    ]
    bases = [] if models.bound_to else catalogue.base_models
    return ListPage(data=[*(_read_base(name, catalogue) for name in bases), *adapters])


@router.get("/models/{model:path}", responses=errors(ModelNotFound))
async def retrieve_model(
    model: str, tenant: CurrentTenant, models: ModelDoorDep, catalogue: CatalogueDep
) -> ModelRead:
    """Show one model: a base, an adapter, a checkpoint or a `:live` name."""
    served = await models.find(model)
    if served.adapter is None:
        return _read_base(served.name, catalogue)
    adapter = await models.adapters.get(served.adapter.adapter_id)
    return _read_adapter(adapter, served.name, tenant.name, catalogue)


@router.delete(
    "/models/{model:path}",
    responses=errors(ModelNotFound, PermissionDenied, Conflict, AdapterInUse),
)
async def delete_model(
    model: str,
    models: ModelDoorDep,
    catalogue: CatalogueDep,
    engines: EnginesDep,
    objects: ObjectsDep,
) -> Deleted:
    """Delete an adapter with all its versions, unless it is pinned, shared or in use."""
    if model in catalogue.base_models:
        raise PermissionDenied("Base models cannot be deleted; name one of your adapters.")
    adapter = await models.adapters.named(models.bound_to or model)
    await remove_adapter(adapter.id, models.adapters, engines.pool, objects)
    return Deleted(id=adapter.model_name, object="model")
