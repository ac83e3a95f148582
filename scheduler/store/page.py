"""One page of a cursor-paged list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Order = Literal["asc", "desc"]

MAX_PAGE_ITEMS = 10_000  # OpenAI's bound on files; the HTTP layer sets tighter ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Items in list order, and whether the list goes on after them.

    Attributes:
        items: the page.
        has_more: whether a further page follows; its cursor is the last item's id.
    """

    items: tuple[T, ...]
    has_more: bool

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)
