"""Two files of a stranger -> an artefact of ours: checked, its configuration written anew."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scheduler.artefact.intake import MAX_CONFIG_BYTES
from scheduler.artefact.lora_config import read_lora_options
from scheduler.artefact.projections import read_projections
from scheduler.artefact.tensor_file import check_tensor_file
from scheduler.domain.adapter import (
    CONFIG_FILE,
    MANIFEST_FILE,
    TENSORS_FILE,
    AdapterManifest,
    content_digest,
)
from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

_METHOD = "lora"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The base model that an adapter must fit.

    Attributes:
        model: its id.
        digest: of its weights, as workers report it.
        folder: where its config.json lies.
        max_rank: the largest rank that workers take.
    """

    model: str
    digest: str
    folder: Path
    max_rank: int


def check_artefact(folder: Path, base: Base) -> AdapterManifest:
    """Check both files and complete the folder: configuration in our words, manifest last.

    Raises:
        InvalidInput: they are no adapter for this base; the sentence says why.
    """
    config = _read_config(folder / CONFIG_FILE)
    kind = str(config.get("peft_type")).upper()
    if kind != "LORA" or config.get("task_type") not in (None, "CAUSAL_LM"):
        raise InvalidInput(
            f"peft_type {kind[:32]!r} with task_type {str(config.get('task_type'))[:32]!r} cannot "
            "be imported; 'LORA' for 'CAUSAL_LM' can.",
            param=CONFIG_FILE,
        )
    options = read_lora_options(config)
    shapes = read_projections(base.folder).lora_shapes(options)
    rank = max(shape[0] for name, shape in shapes.items() if ".lora_A." in name)
    if rank > base.max_rank:
        raise InvalidInput(
            f"The adapter has rank {rank}; the workers' limit is {base.max_rank}.",
            param=CONFIG_FILE,
        )
    check_tensor_file(folder / TENSORS_FILE, shapes)
    text = json.dumps(options.peft_config(base.model), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text)
    return _write_manifest(folder, base, options.model_dump(mode="json"))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes()[: MAX_CONFIG_BYTES + 1])
    except (ValueError, RecursionError):
        raise InvalidInput(f"{CONFIG_FILE} is not JSON.", param=CONFIG_FILE) from None
    if not isinstance(config, dict):
        raise InvalidInput(f"{CONFIG_FILE} must be a JSON object.", param=CONFIG_FILE)
    return config


def _write_manifest(folder: Path, base: Base, options: dict[str, object]) -> AdapterManifest:
    files = {name: _sha256(folder / name) for name in (CONFIG_FILE, TENSORS_FILE)}
    manifest = AdapterManifest(
        base_model=base.model,
        base_digest=base.digest,
        method=_METHOD,
        method_config=options,
        digest=content_digest(files),
        num_bytes=sum((folder / name).stat().st_size for name in files),
        files=files,
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2))
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
