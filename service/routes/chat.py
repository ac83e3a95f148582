"""POST /v1/chat/completions, also under an adapter's own URL."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from scheduler.domain.errors import (
    InvalidInput,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    QuotaExceeded,
)
from service.auth import CurrentTenant
from service.chat import start_chat
from service.deps import EnginesDep, ModelDoorDep, RateGateDep, SettingsDep
from service.encoding import to_json
from service.errors import errors
from service.event_stream import EventStream, unless_disconnected
from service.routes.inference import require_model
from service.schemas.chat import ChatCompletion, ChatRequest

router = APIRouter(tags=["inference"])


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses=errors(InvalidInput, ModelNotFound, PayloadTooLarge, QuotaExceeded, Overloaded)
    | {200: {"content": {"text/event-stream": {}}}},
)
async def create_chat_completion(
    body: ChatRequest,
    request: Request,
    tenant: CurrentTenant,
    models: ModelDoorDep,
    engines: EnginesDep,
    settings: SettingsDep,
    gate: RateGateDep,
) -> Response:
    """Answer a conversation."""
    served = await models.find(require_model(body.model, models), body.logit_arithmetic)
    answer = await start_chat(body, served, tenant, engines, settings, gate)
    if body.stream:
        return EventStream(
            answer.events(), ping_s=settings.ping_s, slow_client_s=settings.slow_client_s
        )
    whole = await unless_disconnected(request, answer.whole())
    return Response(to_json(whole), media_type="application/json")
