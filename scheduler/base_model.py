"""Which base models a service serves, where their folders are, and whether they can be served.

An operator writes `ID=DIR`, `DIR` (the id is the folder's name) or a hub id such as
`org/name@revision`. All checks here read text and file headers only, so that a model which cannot
work is refused in a moment, before any process has started.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from scheduler.domain.errors import InvalidInput

ARCHITECTURES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
SHIPPED_MODEL = "tandem-tiny"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,95}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model")
_MAX_HEADER_BYTES = 100 * 2**20  # the limit of the safetensors format itself


@dataclass(frozen=True, slots=True)
class BaseModelFolder:
    """A base model that passed the checks.

    Attributes:
        id: what callers write as `model`.
        folder: Hugging Face folder: config, tokenizer, safetensors.
        num_parameters: elements over all tensors of its files.
    """

    id: str
    folder: Path
    num_parameters: int

    def __str__(self) -> str:
        return f"{self.id}={self.folder}"


def shipped_model() -> Path:
    """Return the folder of the model that comes with this package.

    Raises:
        InvalidInput: this installation lacks it.
    """
    here = Path(__file__).resolve().parent
    places = (
        here.parent / "examples" / "base_model" / SHIPPED_MODEL,  # a checkout
        here / "base_models" / SHIPPED_MODEL,  # a wheel
    )
    for folder in places:
        if (folder / "config.json").exists():
            return folder
    raise InvalidInput(
        f"This installation lacks the shipped model {SHIPPED_MODEL}; name a model folder with "
        "--base-model DIR, or train one with examples/base_model.",
        param="base_model",
    )


def find_base_model(written: str, *, hub_token: str | None = None) -> BaseModelFolder:
    """Resolve `ID=DIR`, `DIR` or a hub id, and check the folder.

    Raises:
        InvalidInput: there is no such folder or repository, or it cannot be served; one sentence.
    """
    model_id, folder = _locate(written, hub_token)
    if not _ID.fullmatch(model_id):
        raise InvalidInput(
            f"{model_id!r} cannot be a model's id; use letters, digits and . _ - / "
            "(write --base-model ID=DIR).",
            param="base_model",
        )
    return check_folder(model_id, folder)


def check_folder(model_id: str, folder: Path) -> BaseModelFolder:
    """Check that a folder holds a decoder of a known family, a tokenizer and its weights.

    Raises:
        InvalidInput: something is missing or unknown; the sentence names the file.
    """
    config = _read_json(folder / "config.json")
    known = ARCHITECTURES.intersection(config.get("architectures") or ())
    if not known:
        raise _refused(
            f"{folder / 'config.json'} names the architecture {config.get('architectures')}; "
            f"known are {', '.join(sorted(ARCHITECTURES))}"
        )
    if not (folder / "tokenizer.json").is_file():
        raise _refused(f"{folder} has no tokenizer.json")
    shards = _shards(folder)
    return BaseModelFolder(
        id=model_id,
        folder=folder,
        num_parameters=sum(_count_parameters(shard) for shard in shards),
    )


def _locate(written: str, hub_token: str | None) -> tuple[str, Path]:
    """Split a written model into its id and its folder on this machine."""
    model_id, equals, place = written.rpartition("=")
    folder = Path(place).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        return (model_id if equals else folder.name), folder
    if _HUB_ID.fullmatch(place) and not place.startswith((".", "/")):
        hub_id, _, revision = place.partition("@")
        return (model_id if equals else hub_id), _download(hub_id, revision or None, hub_token)
    raise InvalidInput(
        f"There is no folder {place!r}, and it is not a hub id (org/name or org/name@revision).",
        param="base_model",
    )


def _download(hub_id: str, revision: str | None, token: str | None) -> Path:
    try:
        folder = snapshot_download(
            hub_id, revision=revision, token=token, allow_patterns=list(_HUB_FILES)
        )
    except RepositoryNotFoundError:
        reason = "no such repository, or one that needs a token in HF_TOKEN"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first_line = str(error).strip().splitlines() or [type(error).__name__]
        reason = first_line[0]
    else:
        return Path(folder)
    raise InvalidInput(
        f"{hub_id} is no folder here and cannot be downloaded: {reason}.", param="base_model"
    )


def _shards(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise _refused(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json "
            "(weights in other formats are not read)"
        )
    names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    missing = [name for name in names if not (folder / Path(name).name).is_file()]
    if missing or not names:
        raise _refused(f"{index} names shards that are missing: {', '.join(missing) or 'none'}")
    return [folder / Path(name).name for name in names]


def _count_parameters(shard: Path) -> int:
    """Elements of all tensors, from the header: eight bytes of length, then JSON."""
    with shard.open("rb") as file:
        head = file.read(8)
        num_bytes = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= num_bytes <= min(_MAX_HEADER_BYTES, shard.stat().st_size):
            raise _refused(f"{shard} is not a safetensors file")
        header = _parse_json(file.read(num_bytes), shard)
    tensors = (entry for name, entry in header.items() if name != "__metadata__")
    return sum(math.prod(tensor["shape"]) for tensor in tensors)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _parse_json(path.read_bytes(), path)
    except OSError as error:
        raise _refused(f"{path} cannot be read ({error.strerror})") from None


def _parse_json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        raise _refused(f"{path} is not valid JSON") from None
    if not isinstance(value, dict):
        raise _refused(f"{path} is not a JSON object")
    return value


def _refused(reason: str) -> InvalidInput:
    return InvalidInput(f"The base model cannot be served: {reason}.", param="base_model")
