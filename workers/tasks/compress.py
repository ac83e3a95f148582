"""A version -> the same version coded, with its size and what coding did to its quality.

    python -m workers.tasks.compress --base DIR --folder DIR

The folder is an OrderFolder whose options are a Compression. With a validation file quality is
measured before and after; a loss that rises past the guard refuses the order.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from scheduler.domain.adapter_order import Compression, OrderFolder
from scheduler.domain.errors import InvalidInput
from workers.adapter_archive import Archive, initial_params, pack_archive
from workers.adapter_file import BaseIdentity, LoadedAdapter, read_manifest
from workers.adapter_folder import read_folder, write_archive_folder
from workers.architecture import decoder_config
from workers.codec import Codec
from workers.codec_search import Ladder, decoded, search
from workers.codecs import CODECS
from workers.hf_config import read_hf_config
from workers.peft_method import Params
from workers.plugin_options import plugin_options
from workers.tasks.program import run_program
from workers.validation_loss import ValidationLoss


@dataclass(frozen=True, slots=True)
class Source:
    """The version that is compressed, and where its parameters began."""

    adapter: LoadedAdapter
    base: BaseIdentity
    init_seed: int | None


def compress(folder: OrderFolder, base: Path) -> None:
    """Write the coded version and its recipe.

    Raises:
        InvalidInput: an option is wrong, the version cannot be read, or the guard does not hold.
    """
    order = Compression.model_validate_json(folder.options.read_bytes())
    model = decoder_config(read_hf_config(base))
    source = _read_source(folder.source(0), read_folder(folder.source(0), model))
    adapter, loss = source.adapter, None
    if folder.valid.is_file():
        loss = ValidationLoss(base, model, folder.valid, adapter.method.rank)
    codec = _codec(order, source, loss)
    metrics = {} if loss is None else _measured(order, source, codec, loss)
    content = pack_archive(adapter, codec, source.base, source.init_seed, metrics)
    archive = write_archive_folder(folder.out, content, model)
    folder.recipe.write_text(json.dumps(recipe_of(archive)))


def recipe_of(archive: Archive) -> dict[str, object]:
    """What whoever looks at the version may want to know."""
    header, size = archive.header, archive.size
    return {
        "codec": header.codec,
        "config": header.codec_config,
        "bytes": size.total,
        "bits_per_parameter": round(8 * size.total / max(size.num_parameters, 1), 4),
        "ratio_to_16_bit": round(size.ratio_to_16_bit, 2),
        **header.metrics,
    }


def _read_source(folder: Path, adapter: LoadedAdapter) -> Source:
    manifest = read_manifest(folder)
    base = BaseIdentity(manifest.base_model, manifest.base_digest)
    return Source(adapter, base, manifest.init_seed)


def _codec(order: Compression, source: Source, loss: ValidationLoss | None) -> Codec:
    """The codec as ordered, or as the search finds it."""
    if order.search is None:
        codec_type = CODECS[order.codec]
        return codec_type(plugin_options(codec_type.Config, order.config))
    if loss is None:
        raise InvalidInput("A search needs a validation file.")
    ladder = plugin_options(Ladder, order.search)
    method = source.adapter.method

    def score(params: Params) -> float:
        return -loss.of(LoadedAdapter(method, params))

    return search(source.adapter, score, ladder, source.init_seed).codec


def _measured(
    order: Compression, source: Source, codec: Codec, loss: ValidationLoss
) -> dict[str, float]:
    """Loss before and after, within the guard."""
    method, seed = source.adapter.method, source.init_seed
    initial = None if seed is None else initial_params(method, seed)
    before = loss.of(source.adapter)
    after = loss.of(LoadedAdapter(method, decoded(source.adapter, codec, initial)))
    if order.guard is not None and not after <= before + order.guard:
        raise InvalidInput(
            f"Compressed, the validation loss is {after:.4f} instead of {before:.4f}; the guard "
            f"allows {order.guard:g} more. Keep more of it, or search."
        )
    return {"valid_loss": after, "valid_loss_uncompressed": before}


def _run(given: Namespace) -> None:
    compress(OrderFolder(given.folder), given.base)


if __name__ == "__main__":
    sys.exit(run_program(_run, {"base": Path, "folder": Path}))
