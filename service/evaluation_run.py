"""Asks all contenders of an evaluation its rows, and grades what comes back.

The contenders' requests for a row leave together, so they share the engine's steps; they are
ordinary requests of the tenant, at best effort, and like any they end with the right to call a
model. A few rows are under way at a time.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from scheduler.domain.errors import DomainError
from scheduler.domain.evaluation import ContenderReport, EvaluationReport
from scheduler.domain.request import SamplingParams
from scheduler.domain.service_class import BEST_EFFORT
from scheduler.grader import Trial
from scheduler.policy.promotion import reasons_against
from scheduler.store.adapter_names import unknown_model
from service.generation import Generation
from service.sampling import request_body

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator, Mapping
    from concurrent.futures import Executor

    from scheduler.domain.evaluation import Contender, EvaluationPlan
    from scheduler.domain.messages import TokenLogprobs
    from scheduler.domain.request import RequestBody
    from scheduler.domain.tenant import Tenant
    from scheduler.gradebook import Gradebook
    from scheduler.store.adapters import TenantAdapters
    from scheduler.text.exercise import Exercise
    from service.catalogue import ServedModel
    from service.generation import Engines

T = TypeVar("T")

ROWS_AT_ONCE = 8  # of three contenders and two requests each: 48 sequences
RETRY_S = 1.0
PATIENCE_S = 600.0  # an engine may be restarted, and its model loaded, meanwhile
_SCORE = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=True)


class EvaluationRun:
    """One evaluation under way.

    Args:
        engines: the gateway's pool and counters.
        tenant: whose requests they are.
        models: the contenders, of one base model.
        adapters: those that the tenant may call.
        plan: how to evaluate.
        book: takes the grades.
        threads: where rows are read and graded, since a tenant's pattern may take its time.
    """

    def __init__(
        self,
        engines: Engines,
        tenant: Tenant,
        models: Mapping[Contender, ServedModel],
        adapters: TenantAdapters,
        plan: EvaluationPlan,
        book: Gradebook,
        threads: Executor,
    ) -> None:
        self._engines = engines
        self._tenant = tenant
        self._models = models
        self._adapters = adapters
        self._plan = plan
        self._book = book
        self._threads = threads
        self._reading = asyncio.Lock()

    async def over(self, exercises: Iterator[Exercise]) -> EvaluationReport:
        """Ask everything and report.

        Raises:
            DomainError: a row is wrong, the tenant may not call a contender any more, or the
                engines could not answer for too long.
        """
        await _all_of(self._take_rows(exercises) for _ in range(ROWS_AT_ONCE))
        means = {contender: self._book.means(contender) for contender in self._models}
        return EvaluationReport(
            num_rows=self._book.num_rows,
            contenders={
                contender: ContenderReport(model=model.name, means=means[contender])
                for contender, model in self._models.items()
            },
            reasons=reasons_against(self._plan.rules, means),
        )

    async def _take_rows(self, exercises: Iterator[Exercise]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._reading:
                exercise = await loop.run_in_executor(self._threads, next, exercises, None)
            if exercise is None:
                return
            trials = await self._try_all(exercise)
            self._book.add(await loop.run_in_executor(self._threads, self._book.grade, trials))

    async def _try_all(self, exercise: Exercise) -> dict[Contender, Trial]:
        """What each contender does with a row; one that is two of them is asked once."""
        models = {_content(model): model for model in self._models.values()}
        tried = await _all_of(self._persist(model, exercise) for model in models.values())
        by_content = dict(zip(models, tried, strict=True))
        return {name: by_content[_content(model)] for name, model in self._models.items()}

    async def _persist(self, model: ServedModel, exercise: Exercise) -> Trial:
        """Try until an engine has answered."""
        patience_ends_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                await self._check_access(model)
                return await self._try(model, exercise)
            except (DomainError, SQLAlchemyError) as error:
                if not _passes(error) or time.monotonic() > patience_ends_s:
                    raise
            await asyncio.sleep(RETRY_S)

    async def _check_access(self, model: ServedModel) -> None:
        adapter = model.adapter
        if adapter is not None and not await self._adapters.may_call(adapter.adapter_id):
            raise unknown_model(model.name)

    async def _try(self, model: ServedModel, exercise: Exercise) -> Trial:
        score = self._score(model, exercise)
        bodies = score + self._question(model, exercise)
        generation = Generation(
            self._engines, model, bodies, (), continues_text=exercise.continues_text
        )
        texts = [""] * len(bodies)
        async with aclosing(generation.updates()) as updates:
            async for update in updates:
                texts[update.index] += update.piece.text
        scores = _scored(generation.prompt_scores.get(0), exercise) if score else []
        return Trial(
            answer="".join(texts[len(score) :]),
            reference=exercise.reference,
            logprobs=tuple(one.logprob for one in scores),
            hits=tuple(one.rank == 1 for one in scores),
        )

    def _score(self, model: ServedModel, exercise: Exercise) -> list[RequestBody]:
        if not self._book.reads("scores"):
            return []
        return [self._body(model, exercise.token_ids, _SCORE)]

    def _question(self, model: ServedModel, exercise: Exercise) -> list[RequestBody]:
        if not self._book.reads("answer"):
            return []
        room = model.max_model_len - len(exercise.prompt_ids)
        max_tokens = min(self._plan.max_answer_tokens, room)
        greedy = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        return [self._body(model, exercise.prompt_ids, greedy)]

    def _body(
        self, model: ServedModel, token_ids: tuple[int, ...], sampling: SamplingParams
    ) -> RequestBody:
        return request_body(
            self._tenant,
            model,
            token_ids,
            sampling,
            1,
            BEST_EFFORT,
            cache_salt=None,
            kv_policy=None,
        )


def _passes(error: DomainError | SQLAlchemyError) -> bool:
    """Whether it may be over in a while, since only an engine or the database is away."""
    return not isinstance(error, DomainError) or error.retryable


def _content(model: ServedModel) -> str | None:
    return model.adapter.digest if model.adapter else None


def _scored(
    scores: tuple[TokenLogprobs | None, ...] | None, exercise: Exercise
) -> list[TokenLogprobs]:
    """The scores of the tokens that count."""
    assert scores is not None, "a request for scores is answered with them"
    counting = [scores[position] for position in exercise.scored]
    return [score for score in counting if score is not None]


async def _all_of(coroutines: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """Run all at once; the first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
