"""Requests to compress or merge -> what the task is told, checked as far as a gateway can."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scheduler.domain.adapter_order import Compression, MergeSource, Merging
from scheduler.domain.errors import InvalidInput, NotFound, PermissionDenied, UnknownPlugin
from service.blame import blaming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.store.adapters import ResolvedAdapter, TenantAdapters
    from service.schemas.adapter_order import CompressOptions, MergeCreate, SourceCreate
    from service.worker_roster import WorkerRoster


def draft_compression(
    body: CompressOptions,
    base_model: str,
    validation_file: str | None,
    roster: WorkerRoster,
    prefix: str = "",
) -> Compression:
    """The compression that is asked for.

    Args:
        body: what the caller wrote.
        base_model: the base of the version.
        validation_file: what quality can be measured on.
        roster: the workers, who know the codecs.
        prefix: of the fields' names in errors.

    Raises:
        UnknownPlugin: no such codec, or none of that name can be searched.
        InvalidInput: an option is wrong, or needs another that is not there.
        Overloaded: no worker is up to ask.
    """
    if body.config is not None and body.search is not None:
        raise InvalidInput("Give 'config' or 'search', not both.", param=f"{prefix}search")
    if body.guard is not None and body.search is not None:
        raise InvalidInput("A search has its guard in its options.", param=f"{prefix}guard")
    if validation_file is None and (body.search is not None or body.guard is not None):
        raise InvalidInput(
            "A search or a guard needs a validation file to measure on.", param="validation_file"
        )
    if body.promote and body.search is None and body.guard is None:
        raise InvalidInput(
            "Only a version whose quality was held to a guard is promoted; give 'guard' or "
            "'search'.",
            param=f"{prefix}promote",
        )
    kind, given = ("codecs", "config") if body.search is None else ("ladders", "search")
    options = body.search or body.config or {}
    with blaming(f"{prefix}codec", UnknownPlugin):
        roster.check_options(base_model, kind, body.codec, options, f"{prefix}{given}")
    return Compression(
        codec=body.codec,
        config=body.config or {},
        search=body.search,
        guard=body.guard,
        validation_file=validation_file,
        promote=body.promote,
    )


async def find_sources(
    given: Sequence[SourceCreate], adapters: TenantAdapters
) -> list[ResolvedAdapter]:
    """The versions that are to be merged, each named once and the tenant's own.

    Raises:
        ModelNotFound: the tenant has no model of a source's name.
        PermissionDenied: it has borrowed it.
        InvalidInput: two names mean the same version.
    """
    found: dict[tuple[str, int], ResolvedAdapter] = {}
    for index, source in enumerate(given):
        place = f"sources.{index}.model"
        with blaming(place, NotFound, PermissionDenied):
            resolved = await adapters.resolve(source.model)
            await adapters.get_own(resolved.ref.adapter_id)
        version = resolved.ref.adapter_id, resolved.ref.version
        if version in found:
            raise InvalidInput(
                f"{source.model!r} and {found[version].name!r} are the same version; name it once, "
                "with the sum of its weights.",
                param=place,
            )
        found[version] = resolved
    return list(found.values())


def draft_merging(
    body: MergeCreate, sources: Sequence[ResolvedAdapter], roster: WorkerRoster
) -> Merging:
    """The merge that is asked for.

    Args:
        body: what the caller wrote.
        sources: what its names mean.
        roster: the workers, who know the merges.

    Raises:
        UnknownPlugin: no such merge.
        InvalidInput: an option is wrong, or the sources cannot be merged.
        Overloaded: no worker is up to ask.
    """
    if (body.name is None) == (body.adapter_id is None):
        raise InvalidInput(
            "Give the 'name' of a new adapter, or the 'adapter_id' of one of yours.", param="name"
        )
    weights = [source.weight for source in body.sources]
    if any(w is None for w in weights) and any(w is not None for w in weights):
        raise InvalidInput("Give every source a weight, or none.", param="sources")
    if not all(math.isfinite(w) for w in weights if w is not None):
        raise InvalidInput("A weight is not a finite number.", param="sources")
    base_model = base_of(sources)
    with blaming("method", UnknownPlugin):
        roster.check_options(base_model, "merges", body.method, body.config, "config")
    return Merging(
        method=body.method,
        config=body.config,
        sources=tuple(
            MergeSource(adapter_id=s.ref.adapter_id, version=s.ref.version, weight=weight)
            for s, weight in zip(sources, weights, strict=True)
        ),
        max_rank=max(worker.capabilities.max_rank for worker in roster.holding(base_model)),
        name=body.name,
        validation_file=body.validation_file,
    )


def base_of(sources: Sequence[ResolvedAdapter]) -> str:
    """The one base model of all sources.

    Raises:
        InvalidInput: they have several.
    """
    bases = sorted({source.base_model for source in sources})
    if len(bases) > 1:
        raise InvalidInput(
            f"The sources belong to {', '.join(bases)}; only adapters of one base model merge.",
            param="sources",
        )
    return bases[0]
