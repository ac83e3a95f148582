"""What a tenant may have made of its versions by a task: a full model, a smaller one, a merge."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

VALIDATION_TOKENS = 32_768  # of the first examples: each trial of a search reads all of them


class OrderKind(StrEnum):
    """What is made."""

    EXPORT = "export"  # a full model of base and version, for the object store
    COMPRESS = "compress"  # a version whose parameters are coded
    MERGE = "merge"  # a version made of several


class Compression(BaseModel):
    """How to make a version small.

    Attributes:
        search: options of the search that chooses the codec's; then `config` is empty.
        guard: nats by which the mean validation loss may rise; None where it is not measured or
            the search has its own.
        validation_file: id of the file that quality is measured on.
        promote: the version becomes live, unless another was promoted meanwhile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codec: str = "compeft"
    config: dict[str, object] = Field(default_factory=dict)
    search: dict[str, object] | None = None
    guard: float | None = None
    validation_file: str | None = None
    promote: bool = False


class MergeSource(BaseModel):
    """One of the versions that are merged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter_id: str
    version: int
    weight: float | None = None


class Merging(BaseModel):
    """How to make one version of several.

    Attributes:
        sources: either all have a weight, or none.
        max_rank: the largest that workers take.
        name: of the adapter to be; None where an existing one gets a further version.
        validation_file: id of the file that weights are learned on, by methods that learn them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "linear"
    config: dict[str, object] = Field(default_factory=dict)
    sources: tuple[MergeSource, ...]
    max_rank: int
    name: str | None = None
    validation_file: str | None = None


@dataclass(frozen=True, slots=True)
class OrderFolder:
    """The folder that a task fills for its program, and that the program answers in."""

    root: Path

    @property
    def options(self) -> Path:
        """The order's options, as JSON."""
        return self.root / "options.json"

    @property
    def valid(self) -> Path:
        """The validation file, encoded; absent where none was given."""
        return self.root / "valid.bin"

    @property
    def out(self) -> Path:
        """What was made: a version's folder."""
        return self.root / "out"

    @property
    def recipe(self) -> Path:
        """How it was made, as JSON for whoever looks at the version."""
        return self.root / "recipe.json"

    def source(self, index: int) -> Path:
        """The folder of one of the order's versions."""
        return self.root / "sources" / str(index)
