"""/v1/evaluations: versions held against the base and against what answers now."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from scheduler.domain.errors import (
    InvalidInput,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    UnknownPlugin,
)
from service.deps import (
    AdaptersDep,
    CatalogueDep,
    EvaluationsDep,
    FilesDep,
    ReplaysDep,
    SettingsDep,
)
from service.errors import errors
from service.evaluation_read import read_evaluation
from service.evaluation_request import check_plan, draft_plan
from service.schemas.base import Deleted, ListPage
from service.schemas.evaluation import EvaluationCreate, EvaluationRead

router = APIRouter(prefix="/v1/evaluations", tags=["adapters"])

EvaluationId = Annotated[str, Path(max_length=64)]


@router.post(
    "",
    responses=errors(ModelNotFound, PermissionDenied, InvalidInput, UnknownPlugin, QuotaExceeded),
)
async def create_evaluation(
    body: EvaluationCreate,
    adapters: AdaptersDep,
    catalogue: CatalogueDep,
    evaluations: EvaluationsDep,
    files: FilesDep,
    settings: SettingsDep,
    replays: ReplaysDep,
) -> EvaluationRead:
    """Have a version evaluated; with `promote_if` it becomes live if all rules hold."""
    key = replays.key_for("evaluations", body.model_dump(mode="json"))
    served = await catalogue.find(body.model, adapters)
    if served.adapter is None:
        raise InvalidInput(
            "A base model is what versions are held against; name an adapter.", param="model"
        )
    if body.promote_if is not None:
        await adapters.get_own(served.adapter.adapter_id)
    plan = draft_plan(body, body.file, body.promote_if or ())
    await check_plan(plan, served.base_model, files, catalogue, adapters)
    evaluation = await evaluations.create(
        served.adapter.adapter_id,
        served.adapter.version,
        plan,
        max_open=settings.max_open_evaluations,
        idempotency=key,
    )
    return read_evaluation(evaluation)


@router.get("", responses=errors(InvalidInput))
async def list_evaluations(
    evaluations: EvaluationsDep,
    after: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListPage[EvaluationRead]:
    """List evaluations, newest first."""
    page = await evaluations.list(after=after, limit=limit)
    return ListPage.of([read_evaluation(evaluation) for evaluation in page], has_more=page.has_more)


@router.get("/{evaluation_id}", responses=errors(NotFound))
async def retrieve_evaluation(
    evaluation_id: EvaluationId, evaluations: EvaluationsDep
) -> EvaluationRead:
    """Show one evaluation."""
    return read_evaluation(await evaluations.get(evaluation_id))


@router.delete("/{evaluation_id}", responses=errors(NotFound))
async def delete_evaluation(evaluation_id: EvaluationId, evaluations: EvaluationsDep) -> Deleted:
    """Take an evaluation back, or forget one that is over; a promotion stays."""
    await evaluations.delete(evaluation_id)
    return Deleted(id=evaluation_id, object="evaluation")
