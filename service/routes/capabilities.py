"""/v1/capabilities: what the service can do at the moment."""

from fastapi import APIRouter

from scheduler.graders import GRADERS
from service.auth import CurrentTenant
from service.deps import RosterDep
from service.errors import errors
from service.schemas.model import Capabilities

router = APIRouter(prefix="/v1", tags=["adapters"])


@router.get("/capabilities", responses=errors())
async def show_capabilities(tenant: CurrentTenant, roster: RosterDep) -> Capabilities:
    """What the service can do now, with the JSON Schema of every plug-in's options."""
    del tenant  # any key may ask
    bases = {base.id: base for worker in roster.workers for base in worker.capabilities.base_models}
    return Capabilities(
        base_models=[bases[name] for name in sorted(bases)],
        peft_methods=roster.schemas("peft_methods"),
        optimizers=roster.schemas("optimizers"),
        objectives=roster.schemas("objectives"),
        kv_policies=roster.schemas("kv_policies"),
        codecs=roster.schemas("codecs"),
        ladders=roster.schemas("ladders"),
        merges=roster.schemas("merges"),
        graders={name: GRADERS[name].Config.model_json_schema() for name in GRADERS.names()},
        service_classes=roster.service_classes,
        max_rank=max((worker.capabilities.max_rank for worker in roster.workers), default=0),
    )
