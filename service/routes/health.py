"""/healthz, /readyz, /metrics: open to all who reach the port, so silent about tenants."""

from typing import Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from scheduler.domain.errors import Overloaded
from service.deps import CatalogueDep, EnginesDep
from service.errors import ErrorObject
from service.schemas.base import Read

router = APIRouter(tags=["health"])


class Health(Read):
    """A good answer."""

    status: Literal["ok"] = "ok"


@router.get("/healthz")
@router.get("/health", include_in_schema=False)
async def healthz() -> Health:
    """The process is alive."""
    return Health()


@router.get("/readyz", responses={503: {"model": ErrorObject, "description": "Not ready."}})
async def readyz(catalogue: CatalogueDep) -> Health:
    """Every base model is held by a live worker."""
    missing = catalogue.unserved()
    if missing:
        raise Overloaded(f"No worker serves {', '.join(missing)} yet.")
    return Health()


@router.get("/metrics", response_class=Response)
async def metrics(engines: EnginesDep) -> Response:
    """Prometheus series."""
    return Response(engines.metrics.render(), media_type=CONTENT_TYPE_LATEST)
