"""Compressions and merges of adapters, asked for and shown."""

from typing import Annotated, Literal

from pydantic import Field

from service.schemas.base import Body, Read
from service.schemas.options import Options

FileId = Annotated[str, Field(min_length=1, max_length=128)]


class CompressOptions(Body):
    """How to make a version small, and how much quality that may cost."""

    codec: str = Field("compeft", max_length=64, description="See /v1/capabilities.")
    config: Options | None = Field(None, description="Options of the codec.")
    search: Options | None = Field(
        None,
        description="Instead of `config`: find it on the validation file; see ladders in "
        "/v1/capabilities.",
    )
    guard: float | None = Field(
        None, ge=0, description="Nats by which the mean validation loss may rise, with `config`."
    )
    promote: bool = Field(False, description="Make the result live; needs a guard or a search.")


class CompressCreate(CompressOptions):
    """A compression of one version."""

    validation_file: FileId | None = Field(None, description="What quality is measured on.")


class SourceCreate(Body):
    """One of the versions to merge."""

    model: str = Field(
        min_length=1, max_length=512, description="Any name of a version of your own."
    )
    weight: float | None = Field(None, description="Left out by all, they weigh the same.")


class MergeCreate(Body):
    """A merge of several versions of one base model into a further one."""

    method: str = Field("linear", max_length=64, description="See merges in /v1/capabilities.")
    config: Options = Field(default_factory=dict, description="Options of the method.")
    sources: list[SourceCreate] = Field(min_length=1, max_length=32)
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Of the adapter to make.",
    )
    adapter_id: str | None = Field(
        None, max_length=64, description="Instead of `name`: your adapter that gets the version."
    )
    validation_file: FileId | None = Field(None, description="What lorahub learns its weights on.")


class OrderRead(Read):
    """A compression or a merge on its way to a new version."""

    id: str
    object: Literal["adapter.order"] = "adapter.order"
    kind: Literal["compress", "merge"]
    status: Literal["queued", "running", "succeeded", "failed"]
    adapter_id: str = Field(description="The adapter that gets the new version.")
    version: int | None = Field(description="The version that is compressed.")
    result_version: int | None = Field(description="What was made, once it has succeeded.")
    promoted: bool | None = Field(description="Whether it became live, where it was to.")
    reason: str | None = Field(description="Why it did not.")
    created_at: int
    finished_at: int | None
    error: str | None
