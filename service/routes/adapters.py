"""/v1/adapters and /v1/capabilities: what OpenAI's API has no word for."""

from fastapi import APIRouter

from scheduler.domain.errors import NotFound
from scheduler.store.adapters import Adapter
from service.auth import CurrentTenant
from service.deps import AdaptersDep, RosterDep
from service.errors import errors
from service.schemas.base import ListPage
from service.schemas.model import AdapterRead, AdapterVersionRead, Capabilities

router = APIRouter(prefix="/v1", tags=["adapters"])


def _read(adapter: Adapter) -> AdapterRead:
    return AdapterRead(
        id=adapter.id,
        created_at=adapter.created_at,
        model=adapter.model_name,
        base_model=adapter.base_model,
        job_id=adapter.job_id,
        final_version=adapter.final_version,
        versions=[
            AdapterVersionRead(
                version=version.version,
                model=version.name,
                step=version.step,
                digest=version.digest,
                bytes=version.num_bytes,
                created_at=version.created_at,
            )
            for version in adapter.versions
        ],
    )


@router.get("/adapters", responses=errors())
async def list_adapters(adapters: AdaptersDep) -> ListPage[AdapterRead]:
    """List the tenant's adapters with their versions, those of running jobs too."""
    read = [_read(adapter) for adapter in await adapters.list()]
    return ListPage(
        data=read,
        first_id=read[0].id if read else None,
        last_id=read[-1].id if read else None,
    )


@router.get("/adapters/{adapter_id}", responses=errors(NotFound))
async def retrieve_adapter(adapter_id: str, adapters: AdaptersDep) -> AdapterRead:
    """Show one adapter."""
    return _read(await adapters.get(adapter_id))


@router.get("/capabilities", responses=errors())
async def show_capabilities(tenant: CurrentTenant, roster: RosterDep) -> Capabilities:
    """What the live workers can do, with the JSON Schema of every plug-in's options."""
    del tenant  # any key may ask
    bases = {base.id: base for worker in roster.workers for base in worker.capabilities.base_models}
    return Capabilities(
        base_models=[bases[name] for name in sorted(bases)],
        peft_methods=roster.schemas("peft_methods"),
        optimizers=roster.schemas("optimizers"),
        objectives=roster.schemas("objectives"),
        kv_policies=roster.schemas("kv_policies"),
        service_classes=roster.service_classes,
        max_rank=max((worker.capabilities.max_rank for worker in roster.workers), default=0),
    )
