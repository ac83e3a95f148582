"""A tiny base model's config and a peft LoRA folder for it, byte by byte."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from scheduler.artefact.check import Base
from scheduler.domain.adapter import CONFIG_FILE, TENSORS_FILE

if TYPE_CHECKING:
    from pathlib import Path

CONFIG: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
RANK = 2
LORA: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"], "bias": "none", "peft_version": "0.17.0",
}  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of LORA over CONFIG: q is 8 x 8, v is 4 x 8."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        for module, outputs in (("q_proj", 8), ("v_proj", 4)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            found[f"{prefix}.lora_A.weight"] = (RANK, 8)
            found[f"{prefix}.lora_B.weight"] = (outputs, RANK)
    return found


def safetensors(tensors: dict[str, np.ndarray[Any, Any]], **more: Any) -> bytes:
    """A safetensors file of float32 arrays; `more` goes into the header."""
    header: dict[str, Any] = {}
    body = b""
    for name, array in tensors.items():
        data = array.astype("<f4").tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        body += data
    return with_header(json.dumps(header | more).encode(), body)


def with_header(header: bytes, body: bytes = b"") -> bytes:
    """A file with this header."""
    return struct.pack("<Q", len(header)) + header + body


def good_tensors() -> dict[str, np.ndarray[Any, Any]]:
    """Seeded numbers in the right shapes."""
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape) for name, shape in shapes().items()}


def good_files() -> dict[str, bytes]:
    """Both files of a good adapter."""
    return {
        CONFIG_FILE: json.dumps(LORA).encode(),
        TENSORS_FILE: safetensors(good_tensors()),
    }


def write_folder(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """A peft folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or good_files()).items():
        (folder / name).write_bytes(content)
    return folder


def make_base(folder: Path) -> Base:
    """The base model that the good adapter fits."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return Base(model="m", digest="base-digest", folder=folder, max_rank=64)
