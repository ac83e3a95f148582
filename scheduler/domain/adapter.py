"""What an adapter is called and what its artefact holds."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

TENSORS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MANIFEST_FILE = "manifest.json"
ARCHIVE_FILE = "adapter_model.tandem"  # in place of the tensors, where a codec has made them small
ARCHIVE_MAGIC = b"TNDMAD01"  # its first bytes


class AdapterKey(NamedTuple):
    """What an engine knows an adapter by: equal content on two base models is two adapters."""

    base_model: str
    digest: str


class AdapterRef(BaseModel):
    """One immutable version of an adapter: enough to find its bytes and to key its KV."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter_id: str = Field(description="Stable id of the adapter, over all versions.")
    version: int = Field(ge=1, description="Versions count from 1; a version never changes.")
    digest: str = Field(description="SHA-256 of the artefact's tensors and configuration.")
    uri: str = Field(description="Object-store key of the artefact's folder.")
    is_pinned: bool = Field(
        False, description="Its owner wanted it kept close to the engine, when it was asked for."
    )


class AdapterManifest(BaseModel):
    """The JSON beside an adapter's tensors; written last, so its presence means completeness."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: str
    base_digest: str
    method: str = "lora"
    method_config: dict[str, object] = Field(default_factory=dict)
    digest: str
    num_bytes: int = Field(ge=0)
    files: dict[str, str] = Field(description="File name -> SHA-256.")
    step: int = Field(ge=0, default=0)
    metrics: dict[str, float] = Field(default_factory=dict)
    init_seed: int | None = Field(None, description="Seed that drew the initial value, if known.")
    weight_format: str = Field(
        "none",
        description="How the base's weights were held when it was trained.",
        exclude_if=lambda name: name == "none",  # which versions before this field would refuse
    )


def content_digest(files: dict[str, str]) -> str:
    """Digest of an artefact from its files' SHA-256 by name, whatever their order."""
    return hashlib.sha256("".join(files[name] for name in sorted(files)).encode()).hexdigest()
