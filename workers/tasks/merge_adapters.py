"""Several versions of one base model -> one, by a registered merge.

    python -m workers.tasks.merge_adapters --base DIR --folder DIR

The folder is an OrderFolder whose options are a Merging. A merge that learns its weights learns
them on the validation file.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from scheduler.domain.adapter_order import Merging, OrderFolder
from scheduler.domain.errors import InvalidInput
from workers.adapter_file import BaseIdentity, LoadedAdapter, read_manifest, write_adapter
from workers.adapter_folder import read_folder
from workers.architecture import decoder_config
from workers.hf_config import read_hf_config
from workers.merge import Merge
from workers.merges import MERGES
from workers.model import DecoderConfig
from workers.plugin_options import plugin_options
from workers.tasks.program import run_program
from workers.validation_loss import ValidationLoss


def merge_adapters(folder: OrderFolder, base: Path) -> None:
    """Write the merged version and its recipe.

    Raises:
        InvalidInput: an option is wrong, a version cannot be read, or they cannot be merged.
    """
    order = Merging.model_validate_json(folder.options.read_bytes())
    model = decoder_config(read_hf_config(base))
    adapters = [read_folder(folder.source(i), model) for i in range(len(order.sources))]
    merge_type = MERGES[order.method]
    merge = merge_type(plugin_options(merge_type.Config, order.config))
    loss = _loss(order, folder, base, model, adapters)
    merged, weights = _merged(order, merge, adapters, loss)
    if merged.method.rank > order.max_rank:
        raise InvalidInput(
            f"The merged adapter would have rank {merged.method.rank}; the workers' limit is "
            f"{order.max_rank}."
        )
    metrics = {} if loss is None else {"valid_loss": loss.of(merged)}
    manifest = read_manifest(folder.source(0))
    identity = BaseIdentity(manifest.base_model, manifest.base_digest)
    write_adapter(folder.out, merged.method, merged.params, identity, 0, metrics)
    folder.recipe.write_text(json.dumps(recipe_of(order, merge, weights) | metrics))


def recipe_of(order: Merging, merge: Merge, weights: Sequence[float]) -> dict[str, object]:
    """What whoever looks at the version may want to know."""
    return {
        "method": order.method,
        "config": merge.config.model_dump(mode="json"),
        "sources": [
            {"adapter_id": source.adapter_id, "version": source.version, "weight": weight}
            for source, weight in zip(order.sources, weights, strict=True)
        ],
    }


def _merged(
    order: Merging, merge: Merge, adapters: list[LoadedAdapter], loss: ValidationLoss | None
) -> tuple[LoadedAdapter, Sequence[float]]:
    """The merged adapter and its weights: as given, as learned, or all the same."""
    given = [source.weight for source in order.sources if source.weight is not None]
    if not given and merge.learns_weights and loss is not None:
        learned = merge.learn(adapters, lambda adapter: -loss.of(adapter))
        return learned.adapter, learned.weights
    weights = given or [1 / len(adapters)] * len(adapters)
    return merge.merge(adapters, weights), weights


def _loss(
    order: Merging,
    folder: OrderFolder,
    base: Path,
    model: DecoderConfig,
    adapters: list[LoadedAdapter],
) -> ValidationLoss | None:
    if not folder.valid.is_file():
        return None
    ranks = sum(adapter.method.rank for adapter in adapters)  # what `cat` would make of them
    return ValidationLoss(base, model, folder.valid, min(ranks, order.max_rank))


def _run(given: Namespace) -> None:
    merge_adapters(OrderFolder(given.folder), given.base)


if __name__ == "__main__":
    sys.exit(run_program(_run, {"base": Path, "folder": Path}))
