"""The smallest archive that is good enough: up a ladder of densities, the best scale at each.

Sparser is smaller, so the first density with a scale inside the guard is the answer. When even the
top of the ladder is not good enough come the fallbacks, smaller ones first; `none` loses nothing.

The grids are those of Yadav et al. 2023, arXiv:2311.13171, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from scheduler.domain.errors import InvalidInput
from scheduler.domain.registry import PluginConfig
from workers.adapter_archive import change_of, initial_params
from workers.adapter_file import LoadedAdapter
from workers.codec import Codec
from workers.codecs import CODECS
from workers.peft_method import Params

Score = Callable[[Params], float]
Density = Annotated[float, Field(gt=0, le=1)]
Alpha = Annotated[float, Field(gt=0, le=100)]


class Ladder(PluginConfig):
    """What is tried, and how much quality may be lost."""

    densities: tuple[Density, ...] = Field(
        (0.05, 0.1, 0.2, 0.3, 0.5),
        min_length=1,
        max_length=16,
        description="Shares of entries to keep.",
    )
    alphas: tuple[Alpha | None, ...] = Field(
        (None, 0.5, 1, 2, 3, 4, 5, 6, 8, 10),
        min_length=1,
        max_length=16,
        description="Scales, in standard deviations; null is compeft's own choice.",
    )
    group_by: Literal["factor", "tensor"] = Field(
        "tensor", description="What shares a threshold and a scale; see compeft."
    )
    fallbacks: tuple[str, ...] = Field(
        ("int4", "int8"),
        max_length=4,
        description="Codecs tried, in this order, before none is used.",
    )
    guard: float = Field(
        0.01, ge=0, description="The score may fall this far below the uncompressed adapter's."
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """One codec and what the adapter scored after it on the validation data."""

    codec: Codec
    score: float


@dataclass(frozen=True, slots=True)
class Found:
    """The codec to use.

    Attributes:
        codec: ready to encode.
        score: of the adapter after this codec.
        reference: score of the adapter before.
        trials: all that was tried, in order.
    """

    codec: Codec
    score: float
    reference: float
    trials: tuple[Trial, ...]


def search(
    adapter: LoadedAdapter, score: Score, ladder: Ladder, init_seed: int | None = None
) -> Found:
    """Choose density and alpha of ComPEFT.

    Args:
        adapter: trained parameters.
        score: quality of parameters on validation data; higher is better.
        ladder: what to try.
        init_seed: seed of the initial value, as for an archive.

    Raises:
        InvalidInput: the adapter itself has no finite score.
    """
    reference = score(adapter.params)
    if not math.isfinite(reference):
        raise InvalidInput("The adapter has no finite score on the validation data.")
    initial = None if init_seed is None else initial_params(adapter.method, init_seed)
    trials: list[Trial] = []
    for rung in _rungs(ladder):
        tried = [Trial(codec, score(decoded(adapter, codec, initial))) for codec in rung]
        trials += tried
        best = max(tried, key=_quality)  # of equal ones the first
        if best.score >= reference - ladder.guard:
            return Found(best.codec, best.score, reference, tuple(trials))
    return Found(_codec("none"), reference, reference, tuple(trials))


def _rungs(ladder: Ladder) -> Iterator[list[Codec]]:
    """Codecs of one size, smaller sizes first."""
    for density in sorted(ladder.densities):
        options = {"density": density, "group_by": ladder.group_by}
        yield [_codec("compeft", **options, alpha=alpha) for alpha in ladder.alphas]
    for name in ladder.fallbacks:
        yield [_codec(name)]


def _quality(trial: Trial) -> float:
    """The score; one that is NaN is the worst."""
    return -math.inf if math.isnan(trial.score) else trial.score


def _codec(name: str, **options: object) -> Codec:
    return CODECS[name](CODECS[name].Config.model_validate(options))


def decoded(adapter: LoadedAdapter, codec: Codec, initial: Params | None) -> Params:
    """The parameters after coding and decoding, as an archive would give them back.

    Args:
        adapter: trained parameters.
        codec: what codes them.
        initial: what they began as; None where nobody knows.
    """
    start = initial if codec.codes_change else None
    params = codec.decode(
        codec.encode(change_of(adapter.params, start)), adapter.method.file_shapes()
    )
    return params if start is None else {n: start[n] + p for n, p in params.items()}
