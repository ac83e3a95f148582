"""Requests to evaluate -> a plan, checked as far as a gateway can before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.domain.errors import InvalidInput, ModelNotFound, NotFound
from scheduler.domain.evaluation import EvaluationPlan, GraderChoice
from scheduler.gradebook import make_grader
from service.blame import blaming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.domain.evaluation import PromotionRule
    from scheduler.store.adapters import TenantAdapters
    from scheduler.store.files import TenantFiles
    from service.catalogue import Catalogue
    from service.schemas.evaluation import EvaluationOptions, GraderCreate, PromoteIf

GATE = "promote_if."  # where a job keeps all of this


def draft_plan(
    body: EvaluationOptions, file_id: str, rules: Sequence[PromotionRule], prefix: str = ""
) -> EvaluationPlan:
    """The plan that is asked for.

    Args:
        body: what the caller wrote.
        file_id: the file with the rows.
        rules: what makes the version live.
        prefix: of the fields' names in errors.

    Raises:
        UnknownPlugin: no such grader.
        InvalidInput: an option of one is wrong, two have one name, or a rule names none.
    """
    choices = _choices(body.graders, f"{prefix}graders")
    names = {choice.name for choice in choices}
    for rule in rules:
        if rule.grader not in names:
            raise InvalidInput(
                f"A rule names the grader {rule.grader!r}; there are {', '.join(sorted(names))}.",
                param=f"{prefix}rules" if prefix else "promote_if",
            )
    return EvaluationPlan(
        file=file_id,
        graders=choices,
        current=body.current,
        max_rows=body.max_rows,
        max_answer_tokens=body.max_answer_tokens,
        rules=tuple(rules),
    )


def draft_gate(body: PromoteIf, validation_file: str | None) -> EvaluationPlan:
    """The evaluation that a job ends with.

    Raises:
        UnknownPlugin: no such grader.
        InvalidInput: there is no file, or another option is wrong.
    """
    file_id = body.file or validation_file
    if file_id is None:
        raise InvalidInput(
            "There is nothing to evaluate on; give a 'file' or a validation file.",
            param=f"{GATE}file",
        )
    return draft_plan(body, file_id, body.rules, GATE)


async def check_plan(
    plan: EvaluationPlan,
    base_model: str,
    files: TenantFiles,
    catalogue: Catalogue,
    adapters: TenantAdapters,
    prefix: str = "",
) -> None:
    """Refuse a plan that could not be carried out now.

    Raises:
        InvalidInput: the file is not the tenant's, or `current` has another base model.
        ModelNotFound: there is no model `current`.
    """
    try:
        await files.get(plan.file)
    except NotFound as error:
        raise InvalidInput(error.message, param=f"{prefix}file") from None
    if plan.current is None:
        return
    with blaming(f"{prefix}current", ModelNotFound):
        current = await catalogue.find(plan.current, adapters)
    if current.base_model != base_model:
        raise InvalidInput(
            f"{plan.current!r} belongs to {current.base_model!r}; only models of {base_model!r} "
            "compare, token by token.",
            param=f"{prefix}current",
        )


def _choices(graders: Sequence[GraderCreate], place: str) -> tuple[GraderChoice, ...]:
    choices: dict[str, GraderChoice] = {}
    for index, grader in enumerate(graders):
        name = grader.name or grader.type
        if name in choices:
            raise InvalidInput(
                f"Two graders are called {name!r}; give one another name.",
                param=f"{place}.{index}.name",
            )
        choices[name] = GraderChoice(name=name, type=grader.type, config=grader.config)
        make_grader(choices[name], f"{place}.{index}")
    return tuple(choices.values())
