"""A job's checkpoint: fresh folder, tensors, JSON, manifest last, then one rename.

step-N/adapter/         a peft artefact, callable as a model
step-N/optimizer.safetensors
step-N/state.json       step, counters, schedule position, fingerprint
step-N/manifest.json    SHA-256 of every file; its presence means completeness
"""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from scheduler.domain.adapter import AdapterManifest
from scheduler.domain.errors import InvalidInput
from scheduler.durable import sync_folder, write_durably
from workers.adapter_file import BaseIdentity, write_adapter
from workers.peft_method import Params, PeftMethod
from workers.weight_format import NO_FORMAT

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class JobState:
    """Where a job stands between two optimizer steps; all randomness follows from it."""

    step: int
    trained_tokens: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class CheckpointData:
    """Everything a checkpoint holds, as copies that training no longer changes."""

    params: Params
    optimizer_state: dict[str, Tensor]
    state: JobState


def fingerprint(
    device: torch.device, dtype: torch.dtype, weight_format: str = NO_FORMAT
) -> dict[str, str | int]:
    """What must be equal for a resumed run to be equal bit for bit."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": str(device),
        "dtype": str(dtype),
        "weight_format": weight_format,
        "num_threads": torch.get_num_threads(),
    }


def write_checkpoint(
    root: Path,
    method: PeftMethod,
    data: CheckpointData,
    base: BaseIdentity,
    machine: dict[str, str | int],
    seed: int | None = None,
) -> tuple[Path, AdapterManifest]:
    """Write `root/step-N`; it appears complete or not at all, and is written once.

    `seed` is the job's, which drew the adapter's initial value.
    """
    final = root / f"step-{data.state.step}"
    if final.exists():  # a job that stops where it has just saved itself
        return final, AdapterManifest.model_validate_json((final / ADAPTER / MANIFEST).read_bytes())
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f".tmp-{uuid.uuid4().hex}"
    folder.mkdir()
    state = data.state
    adapter = write_adapter(
        folder / ADAPTER, method, data.params, base, state.step, state.metrics, seed
    )
    write_durably(folder / OPTIMIZER, save(data.optimizer_state))
    write_durably(
        folder / STATE, json.dumps(asdict(state) | {"fingerprint": machine}, indent=2).encode()
    )
    write_durably(folder / MANIFEST, json.dumps({"files": _hashes(folder)}, indent=2).encode())
    folder.rename(final)
    sync_folder(root)
    return final, adapter


def read_checkpoint(folder: Path, method: PeftMethod) -> CheckpointData:
    """Read a checkpoint back, every hash verified.

    Raises:
        InvalidInput: it is torn, altered, or of another method.
    """
    verify_checkpoint(folder)
    state = json.loads((folder / STATE).read_bytes())
    params = load_file(folder / ADAPTER / "adapter_model.safetensors")
    if {name: tuple(t.shape) for name, t in params.items()} != method.file_shapes():
        raise InvalidInput(f"Checkpoint {folder.name} belongs to another adapter shape.")
    return CheckpointData(
        params,
        load_file(folder / OPTIMIZER),
        JobState(state["step"], state["trained_tokens"], state["metrics"]),
    )


def verify_checkpoint(folder: Path) -> None:
    """Check all files against the manifest.

    Raises:
        InvalidInput: a file is missing, added or altered, or there is no manifest.
    """
    try:
        expected = json.loads((folder / MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidInput(f"Checkpoint {folder.name} has no readable manifest.") from None
    if _hashes(folder) != expected:
        raise InvalidInput(f"Checkpoint {folder.name} does not match its manifest.")


def _hashes(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file but the manifest."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
