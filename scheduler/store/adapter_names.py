"""What a model name means: the one version of an adapter that answers to it.

NAME                 the promoted version, else the one that the job or the import published
NAME:live            the promoted version, else the newest that was trained or imported
                     (of a gated adapter both mean the promoted version and nothing else)
NAME:TAG             the version that the tag is on
NAME@N               version N
NAME:ckpt-step-N     the version of that training step
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from scheduler.domain.adapter_order import OrderKind
from scheduler.domain.errors import InvalidInput, ModelNotFound
from scheduler.store.tables import adapter_tags, adapter_versions, adapters

if TYPE_CHECKING:
    from collections.abc import Callable

LIVE = "live"
_RESERVED = re.compile(r"live|latest|ckpt-.*")
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def check_tag(tag: str) -> None:
    """Refuse a text that cannot be a tag.

    Raises:
        InvalidInput: it is no short lower-case word, or it has a meaning of its own.
    """
    if not _TAG.fullmatch(tag) or _RESERVED.fullmatch(tag):
        raise InvalidInput(
            f"{tag!r} cannot be a tag; use up to 64 of a-z, 0-9 and . _ - (not 'live', 'latest' "
            "or 'ckpt-...').",
            param="tag",
        )


def unknown_model(model_name: str) -> ModelNotFound:
    """The one answer for names that are unknown, foreign or not published."""
    return ModelNotFound(
        f"The model {model_name!r} does not exist or you do not have access to it; "
        "GET /v1/models lists yours.",
        param="model",
    )


def version_query(visible: Select[Any], model_name: str) -> Select[Any]:
    """Of the `visible` adapters' versions the one that answers to the name.

    Every form starts with a whole adapter name, so the unique index on names finds it.
    """
    meanings = [_plain(model_name)]
    for mark, meaning in _MARKS.items():
        head, found, label = model_name.rpartition(mark)
        if found:
            meanings.append(and_(adapters.c.model_name == head, meaning(model_name, label)))
    return (
        visible.add_columns(
            adapter_versions.c.version, adapter_versions.c.digest, adapter_versions.c.uri
        )
        .join(adapter_versions, adapter_versions.c.adapter_id == adapters.c.id)
        .where(or_(*meanings))
        .order_by(adapter_versions.c.version.desc())
        .limit(1)
    )


def _plain(model_name: str) -> ColumnElement[bool]:
    published = func.coalesce(adapters.c.live_version, adapters.c.final_version)
    return and_(adapters.c.model_name == model_name, adapter_versions.c.version == published)


def _labelled(model_name: str, label: str) -> ColumnElement[bool]:
    if label == LIVE:
        versions, made = adapter_versions.c, (OrderKind.COMPRESS, OrderKind.MERGE)
        was_made = func.coalesce(versions.origin, "").in_(made)
        is_open = adapters.c.live_version.is_(None) & ~adapters.c.is_gated
        is_newest = is_open & ~was_made  # of all the newest comes first
        return or_(versions.version == adapters.c.live_version, is_newest)
    tagged = select(adapter_tags.c.version).where(
        adapter_tags.c.adapter_id == adapters.c.id, adapter_tags.c.tag == label
    )
    return or_(
        adapter_versions.c.name == model_name,
        adapter_versions.c.version == tagged.scalar_subquery(),
    )


def _numbered(_model_name: str, label: str) -> ColumnElement[bool]:
    number = int(label) if _NUMBER.fullmatch(label) else -1
    return adapter_versions.c.version == number


_MARKS: dict[str, Callable[[str, str], ColumnElement[bool]]] = {":": _labelled, "@": _numbered}
