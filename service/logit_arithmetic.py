"""A model and the terms added to its logits -> one mixture in which each model occurs once.

    logits = logits(model) + sum of beta (logits(term.model) - logits(term.reference))

`model` the base and one term is base + beta (adapter - base). `model` an adapter, a donor and the
donor's own reference is emulated fine-tuning on one base.

Source: Liu et al. 2021, arXiv:2105.03023; Mitchell et al. 2023, arXiv:2310.12962.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scheduler.domain.errors import InvalidInput, ModelNotFound
from scheduler.domain.request import WeightedModel
from service.blame import blaming

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from scheduler.domain.adapter import AdapterRef
    from service.catalogue import ServedModel
    from service.schemas.logit_arithmetic import LogitTerm

    FindModel = Callable[[str], Awaitable[ServedModel]]
    Part = tuple[AdapterRef | None, float]

MIN_WEIGHT = 1e-9  # what betas that cancel each other leave behind


async def with_terms(
    served: ServedModel, terms: Sequence[LogitTerm], find: FindModel
) -> ServedModel:
    """The model with its terms; a plain one where they cancel out.

    Args:
        served: the model of the request.
        terms: what is added to its logits.
        find: what a name means to the caller.

    Raises:
        ModelNotFound: the caller has no model of a term's name.
        InvalidInput: it has another base.
    """
    parts: list[Part] = [(served.adapter, 1.0)]
    for position, term in enumerate(terms):
        param = f"logit_arithmetic.{position}"
        parts.append((await _adapter(term.model, served, find, f"{param}.model"), term.beta))
        reference = None
        if term.reference is not None:
            reference = await _adapter(term.reference, served, find, f"{param}.reference")
        parts.append((reference, -term.beta))
    members = merged(parts)
    if len(members) == 1:
        return replace(served, adapter=members[0].adapter)
    return replace(served, adapter=None, mixture=members)


def merged(parts: Iterable[Part]) -> tuple[WeightedModel, ...]:
    """Each model once, by content, with the sum of its weights; without those that cancel out."""
    adapters: dict[str | None, AdapterRef | None] = {}
    weights: dict[str | None, float] = {}
    for adapter, weight in parts:
        digest = None if adapter is None else adapter.digest
        adapters.setdefault(digest, adapter)
        weights[digest] = weights.get(digest, 0.0) + weight
    return tuple(
        WeightedModel(adapter=adapters[digest], weight=weight)
        for digest, weight in weights.items()
        if abs(weight) > MIN_WEIGHT
    )


async def _adapter(
    name: str, served: ServedModel, find: FindModel, param: str
) -> AdapterRef | None:
    with blaming(param, ModelNotFound):
        found = await find(name)
    if found.base_model != served.base_model:
        raise InvalidInput(
            f"{name!r} is a model of {found.base_model!r} and {served.name!r} one of "
            f"{served.base_model!r}; only logits of one base model add up.",
            param=param,
        )
    return found.adapter
