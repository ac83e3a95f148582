"""Adapters and their versions as values, read from rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, select

from scheduler.store.tables import adapter_shares, adapter_tags, adapter_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion:
    """One immutable version.

    Attributes:
        name: its `ckpt-step-N` name; an imported version has its `@N` name.
        origin: `job`, `import`, or the kind of the order that made it; None when it is older than
            the registry, like what follows.
        base_digest: digest of the base weights that it belongs to.
        job_id: the job that trained it.
        data_digests: SHA-256 of the files that it was trained on, by role.
        parent_version: the version of the same adapter that it was made of.
        recipe: how it was compressed or merged; only its owner sees that.
    """

    version: int
    name: str
    step: int
    digest: str
    uri: str
    num_bytes: int
    created_at: int
    origin: str | None = None
    base_digest: str | None = None
    method: str | None = None
    job_id: str | None = None
    data_digests: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    parent_version: int | None = None
    recipe: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter with at least one version.

    Attributes:
        job_id: the job that makes its versions; None for an imported adapter.
        model_name: the plain name, callable once `published_version` is set.
        final_version: what its job, or its import, published.
        live_version: what its owner promoted; comes before `final_version`.
        shared_by: the owner's name when the reader is a borrower, else None.
        shared_with: ids of the borrowers; only its owner sees them.
        versions: newest last; a list of models leaves them out.
        tags: tag -> version.
    """

    id: str
    job_id: str | None
    base_model: str
    model_name: str
    created_at: int
    final_version: int | None
    live_version: int | None
    is_pinned: bool
    shared_by: str | None
    shared_with: tuple[str, ...] = ()
    versions: tuple[AdapterVersion, ...] = ()
    tags: dict[str, int] = field(default_factory=dict)

    @property
    def published_version(self) -> int | None:
        """The version that answers to the plain name."""
        return self.final_version if self.live_version is None else self.live_version


def adapter_of(row: Row[Any], reader_id: str | None) -> Adapter:
    """The adapter of a row that carries `owner_name`, without its versions and tags."""
    is_owner = reader_id in (row.tenant_id, None)
    return Adapter(
        id=row.id,
        job_id=row.job_id if is_owner else None,
        base_model=row.base_model,
        model_name=row.model_name,
        created_at=int(row.created_at),
        final_version=row.final_version,
        live_version=row.live_version,
        is_pinned=row.is_pinned,
        shared_by=None if is_owner else row.owner_name,
    )


async def whole_adapters(
    conn: AsyncConnection, rows: Sequence[Row[Any]], reader_id: str | None
) -> list[Adapter]:
    """The adapters of the rows with all that belongs to them, by three queries in all.

    A borrower sees no jobs and no data digests: they tell of the owner's other things. An
    operator (`reader_id` None) sees what each owner sees.
    """
    ids = [row.id for row in rows]
    owned = {row.id for row in rows if reader_id in (row.tenant_id, None)}
    versions: dict[str, list[AdapterVersion]] = defaultdict(list)
    by_version = select(adapter_versions).order_by(adapter_versions.c.version)
    for row in await conn.execute(by_version.where(adapter_versions.c.adapter_id.in_(ids))):
        versions[row.adapter_id].append(version_of(row, is_owner=row.adapter_id in owned))
    tags: dict[str, dict[str, int]] = defaultdict(dict)
    by_tag = select(adapter_tags).order_by(adapter_tags.c.tag)
    for row in await conn.execute(by_tag.where(adapter_tags.c.adapter_id.in_(ids))):
        tags[row.adapter_id][row.tag] = row.version
    borrowers: dict[str, list[str]] = defaultdict(list)
    by_share = select(adapter_shares).order_by(adapter_shares.c.created_at)
    for row in await conn.execute(by_share.where(adapter_shares.c.adapter_id.in_(owned))):
        borrowers[row.adapter_id].append(row.tenant_id)
    return [_complete(adapter_of(row, reader_id), versions, tags, borrowers) for row in rows]


def version_of(row: Row[Any], *, is_owner: bool) -> AdapterVersion:
    """The version of a row."""
    return AdapterVersion(
        version=row.version,
        name=row.name,
        step=row.step,
        digest=row.digest,
        uri=row.uri,
        num_bytes=row.num_bytes,
        created_at=int(row.created_at),
        origin=row.origin,
        base_digest=row.base_digest,
        method=row.method,
        job_id=row.job_id if is_owner else None,
        data_digests=(row.data_digests or {}) if is_owner else {},
        metrics=row.metrics or {},
        parent_version=row.parent_version,
        recipe=row.recipe if is_owner else None,
    )


def _complete(
    adapter: Adapter,
    versions: dict[str, list[AdapterVersion]],
    tags: dict[str, dict[str, int]],
    borrowers: dict[str, list[str]],
) -> Adapter:
    return replace(
        adapter,
        versions=tuple(versions[adapter.id]),
        tags=tags[adapter.id],
        shared_with=tuple(borrowers[adapter.id]),
    )
