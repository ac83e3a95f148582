"""An adapter on disk: a folder that Hugging Face peft loads, with our manifest beside it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from scheduler.domain.adapter import (
    CONFIG_FILE,
    MANIFEST_FILE,
    TENSORS_FILE,
    AdapterManifest,
    content_digest,
)
from scheduler.domain.errors import InvalidInput
from scheduler.durable import write_durably
from workers.model import DecoderConfig
from workers.peft_method import Params, PeftMethod
from workers.peft_methods import PEFT_METHODS
from workers.weight_format import NO_FORMAT

TENSORS, CONFIG, MANIFEST = TENSORS_FILE, CONFIG_FILE, MANIFEST_FILE
MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 4096
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """A method and its parameters, on the CPU."""

    method: PeftMethod
    params: Params


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """Which base model an adapter belongs to, and how its weights are held here.

    The digest is that of the weights as published: an adapter fits the base in every format.
    """

    model: str
    digest: str
    weight_format: str = NO_FORMAT

    @property
    def computed_digest(self) -> str:
        """What keys and values depend on: equal weights in another format give others."""
        is_plain = self.weight_format == NO_FORMAT
        return self.digest if is_plain else f"{self.digest}-{self.weight_format}"


def write_adapter(
    folder: Path,
    method: PeftMethod,
    params: Params,
    base: BaseIdentity,
    step: int,
    metrics: dict[str, float],
    init_seed: int | None = None,
) -> AdapterManifest:
    """Write tensors, configuration and, last, the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = save({name: p.detach().cpu().contiguous() for name, p in params.items()})
    config = method.peft_config() | {"base_model_name_or_path": base.model}
    files = {TENSORS: tensors, CONFIG: json.dumps(config, indent=2, sort_keys=True).encode()}
    for name, content in files.items():
        write_durably(folder / name, content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = AdapterManifest(
        base_model=base.model,
        base_digest=base.digest,
        method=method.peft_type.lower(),
        method_config=method.config.model_dump(mode="json"),
        digest=content_digest(hashes),
        num_bytes=sum(map(len, files.values())),
        files=hashes,
        step=step,
        metrics=metrics,
        init_seed=init_seed,
        weight_format=base.weight_format,
    )
    write_durably(folder / MANIFEST, manifest.model_dump_json(indent=2).encode())
    return manifest


def read_adapter(folder: Path, model: DecoderConfig) -> LoadedAdapter:
    """Read a peft folder.

    Raises:
        InvalidInput: a file is missing or hostile, or does not fit the base model.
    """
    config = _read_config(folder / CONFIG)
    kind = str(config.get("peft_type", "")).lower()
    method = PEFT_METHODS[kind].from_peft_config(config, model)
    return LoadedAdapter(method, _read_tensors(folder / TENSORS, method.file_shapes()))


def read_manifest(folder: Path) -> AdapterManifest:
    """The manifest of a version's folder.

    Raises:
        InvalidInput: it is missing or wrong.
    """
    try:
        return AdapterManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise InvalidInput(f"{MANIFEST} is missing or cannot be read.") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(MAX_HEADER_BYTES))
    except (OSError, ValueError, RecursionError):
        raise InvalidInput(f"{path.name} is missing, too large or not JSON.") from None
    if not isinstance(config, dict):
        raise InvalidInput(f"{path.name} must be a JSON object.")
    return config


def _read_tensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> Params:
    _check_header(path)
    try:
        with safe_open(path, "pt") as reader:
            names = set(reader.keys())
            if names != set(shapes):
                odd = sorted(names ^ set(shapes))[:3]
                raise InvalidInput(f"{path.name} and its configuration differ in tensors: {odd}.")
            params = {name: reader.get_tensor(name) for name in shapes}
    except SafetensorError as error:
        raise InvalidInput(f"{path.name} is not a readable safetensors file: {error}.") from None
    for name, tensor in params.items():
        _check_tensor(name, tensor, shapes[name])
    _check_finite(params)
    return params


def _check_header(path: Path) -> None:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise InvalidInput(f"{path.name} has a header of {length} bytes.")
            header = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError):
        raise InvalidInput(f"{path.name} is missing or not a safetensors file.") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise InvalidInput(f"{path.name} holds more than {MAX_TENSORS} tensors.")


def _check_tensor(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InvalidInput(f"Tensor {name!r} has shape {tuple(tensor.shape)}, not {shape}.")
    if tensor.dtype not in DTYPES:
        raise InvalidInput(f"Tensor {name!r} has dtype {tensor.dtype}; known: {DTYPES}.")


def _check_finite(params: Params) -> None:
    """One look at all peaks: hundreds of masks, each with a look of its own, would cost more.

    Raises:
        InvalidInput: a tensor holds NaN or infinite numbers.
    """
    peaks = torch.stack([tensor.abs().amax().float() for tensor in params.values()])
    for name, peak in zip(params, peaks.tolist(), strict=True):
        if not math.isfinite(peak):
            raise InvalidInput(f"Tensor {name!r} holds NaN or infinite numbers.")
