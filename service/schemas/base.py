"""What all bodies share: they are strict, and they never change."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


class Body(BaseModel):
    """A request body whose unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class OpenBody(BaseModel):
    """A request body whose unknown fields are kept aside, because clients keep adding some."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


class Read(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ListPage(Read, Generic[T]):
    """One page of a list; the cursor of the next page is the last item's id."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = Field(False, description="Whether the list goes on after this page.")

    @classmethod
    def of(
        cls, data: list[T], *, has_more: bool, cursor: Callable[[T], Any] = attrgetter("id")
    ) -> Self:
        """A page of these items, whose `cursor` is what a caller sends as `after`."""
        return cls(
            data=data,
            first_id=str(cursor(data[0])) if data else None,
            last_id=str(cursor(data[-1])) if data else None,
            has_more=has_more,
        )


class Deleted(Read):
    """What a DELETE answers."""

    id: str
    object: str
    deleted: bool = True
