"""Base and adapter -> a full Hugging Face model: W + delta, streamed in sharded safetensors.

    python -m workers.tasks.merge_export --base DIR --adapter DIR --out DIR

Whatever the model's size, one tensor of it is in memory (and the adapter). Sums are float32, and
rounded once to the dtype of the base's file, as peft's merge does.
"""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from scheduler.domain.errors import InvalidInput
from workers.adapter_arena import Term, empty_terms
from workers.adapter_file import LoadedAdapter
from workers.adapter_folder import read_folder
from workers.adapter_sites import sites
from workers.architecture import decoder_config
from workers.base_weights import WeightFolder
from workers.hf_config import read_hf_config
from workers.model import MODULE_PATHS, DecoderConfig
from workers.tasks.program import run_program
from workers.tasks.shard_writer import DTYPE_NAMES, TensorSpec, plan_shards, write_shards

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

MAX_SHARD_BYTES = 2 << 30
# Files beside the weights that belong to a model; code never does.
_BESIDE = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "chat_template.jinja"),
)
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class Deltas:
    """What an adapter adds to each base tensor, computed when it is asked for."""

    def __init__(self, adapter: LoadedAdapter, config: DecoderConfig) -> None:
        self._rank = adapter.method.rank
        self._terms = _lowered(adapter, config)
        self._sites = {
            f"model.layers.{site.layer}.{MODULE_PATHS[site.part.module]}.weight": site
            for site in sites(config, adapter.method.modules)
        }

    @property
    def names(self) -> frozenset[str]:
        """Base tensors that change."""
        return frozenset(self._sites)

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The tensor with the adapter's part, in its own dtype; others come back as they are."""
        site = self._sites.get(name)
        if site is None:
            return weight
        term = self._terms[site.key]
        change = term.expand_RO[site.place].T @ site.joined_shrink(term, self._rank)
        total = weight.float() + change
        merged = total.to(weight.dtype)
        if not bool(torch.isfinite(merged).all()):
            raise InvalidInput(f"Merged tensor {name!r} overflows {weight.dtype}.")
        return merged


def merge_export(
    base: Path, adapter: Path, out: Path, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the merged model into a folder that does not exist yet; it appears whole or not at all.

    Raises:
        InvalidInput: base or adapter cannot be read, or they do not fit.
        OSError: the disk refuses.
    """
    config = decoder_config(read_hf_config(base))
    weights = WeightFolder(base)
    deltas = Deltas(read_folder(adapter, config), config)
    if missing := sorted(deltas.names - weights.shards.keys()):
        raise InvalidInput(f"The base lacks {missing[0]!r}, which the adapter changes.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        shards = plan_shards(_specs(weights), max_shard_bytes)
        write_shards(partial, shards, _merged(weights, deltas))
        for name in _BESIDE:
            if (base / name).is_file():
                shutil.copyfile(base / name, partial / name)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _lowered(adapter: LoadedAdapter, config: DecoderConfig) -> dict[tuple[int, int], Term]:
    """The adapter's terms in float32, outside any arena."""
    terms = empty_terms(config, adapter.method.columns(), torch.float32)
    params = {name: param.float() for name, param in adapter.params.items()}
    adapter.method.lower(params, terms)
    return terms


def _by_file(weights: WeightFolder) -> list[tuple[Path, list[str]]]:
    """Files of the base, each with its tensors, in a fixed order."""
    files = sorted(set(weights.shards.values()))
    return [
        (file, sorted(name for name, place in weights.shards.items() if place == file))
        for file in files
    ]


def _specs(weights: WeightFolder) -> Iterator[TensorSpec]:
    for file, names in _by_file(weights):
        with safe_open(file, "pt") as reader:
            for name in names:
                view = reader.get_slice(name)
                dtype = view.get_dtype()
                if dtype not in _DTYPES:
                    raise InvalidInput(
                        f"Base tensor {name!r} has dtype {dtype}; it stays unmerged."
                    )
                yield TensorSpec(name, _DTYPES[dtype], tuple(view.get_shape()))


def _merged(weights: WeightFolder, deltas: Deltas) -> Iterator[Tensor]:
    for file, names in _by_file(weights):
        with safe_open(file, "pt") as reader:
            for name in names:
                yield deltas.merged(name, reader.get_tensor(name))


def _run(given: Namespace) -> None:
    merge_export(given.base, given.adapter, given.out)


if __name__ == "__main__":
    sys.exit(run_program(_run, {"base": Path, "adapter": Path, "out": Path}))
