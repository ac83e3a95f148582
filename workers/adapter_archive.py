"""One adapter in one file, coded: magic, SHA-256 of the rest, header length, JSON header, payload.

A reader trusts nothing in it: the header's length is bounded before it is read, the payload's by
what its codec could need for this method on this base model, and the codec checks the rest.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from scheduler.artefact.coded_file import PREFIX, read_head
from scheduler.domain.adapter import ARCHIVE_MAGIC
from scheduler.domain.errors import InvalidInput
from workers.adapter_file import BaseIdentity, LoadedAdapter
from workers.codec import Codec, flatten, num_entries
from workers.codecs import CODECS
from workers.flat_params import FlatParams
from workers.model import DecoderConfig
from workers.peft_method import Params, PeftMethod
from workers.peft_methods import PEFT_METHODS


class ArchiveHeader(BaseModel):
    """What the payload is.

    Attributes:
        init_crc32: of the initial value as the writer made it, so that a reader whose generator
            draws other numbers notices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    codec: str
    codec_config: dict[str, object]
    method: str
    method_config: dict[str, object]
    base_model: str
    base_digest: str
    num_parameters: int = Field(ge=0)
    init_seed: int | None = Field(None, ge=0, lt=2**63)
    init_crc32: int | None = Field(None, ge=0, lt=2**32)
    metrics: dict[str, FiniteFloat] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArchiveSize:
    """Exact sizes of an archive, in bytes."""

    header: int
    payload: int
    num_parameters: int

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return PREFIX.size + self.header + self.payload

    @property
    def ratio_to_16_bit(self) -> float:
        """How many times smaller than two bytes a parameter."""
        return 2 * self.num_parameters / self.total


@dataclass(frozen=True, slots=True)
class Archive:
    """A verified archive in memory, still coded."""

    header: ArchiveHeader
    codec: Codec
    method: PeftMethod
    payload: bytes
    digest: str
    size: ArchiveSize

    def adapter(self) -> LoadedAdapter:
        """Decode.

        Raises:
            InvalidInput: the payload is wrong, or the initial value cannot be made again.
        """
        params = self.codec.decode(self.payload, self.method.file_shapes())
        return LoadedAdapter(self.method, with_initial(params, self.header, self.method))


def pack_archive(
    adapter: LoadedAdapter,
    codec: Codec,
    base: BaseIdentity,
    init_seed: int | None = None,
    metrics: dict[str, float] | None = None,
) -> bytes:
    """Code an adapter.

    Args:
        adapter: float parameters.
        codec: which codes it; its registered name goes into the header.
        base: the model that the adapter belongs to.
        init_seed: seed of the adapter's initial value; None where nobody knows it.
        metrics: measured quality, to stand beside the size.

    Raises:
        InvalidInput: a parameter is not finite.
    """
    initial: Params | None = None
    if init_seed is not None and codec.codes_change:
        initial = initial_params(adapter.method, init_seed)
    payload = codec.encode(change_of(adapter.params, initial))
    header = ArchiveHeader(
        codec=_name_of(codec),
        codec_config=codec.config.model_dump(mode="json"),
        method=adapter.method.peft_type.lower(),
        method_config=adapter.method.config.model_dump(mode="json"),
        base_model=base.model,
        base_digest=base.digest,
        num_parameters=num_entries(adapter.method.file_shapes()),
        init_seed=init_seed,
        init_crc32=None if initial is None else _crc32(initial),
        metrics=metrics or {},
    )
    rest = header.model_dump_json(exclude_none=True).encode()
    digest = hashlib.sha256(rest + payload).digest()
    return PREFIX.pack(ARCHIVE_MAGIC, digest, len(rest)) + rest + payload


def change_of(params: Params, initial: Params | None) -> Params:
    """What training has added to the initial value, in float32; all of it where there is none."""
    if initial is None:
        return params
    return {name: p.detach().cpu().float() - initial[name] for name, p in params.items()}


def with_initial(params: Params, header: ArchiveHeader, method: PeftMethod) -> Params:
    """Undo `change_of`: add the initial value to what was coded, where it was taken off.

    Raises:
        InvalidInput: the initial value cannot be made again.
    """
    if header.init_seed is None or not CODECS[header.codec].codes_change:
        return params
    initial = initial_params(method, header.init_seed)
    if _crc32(initial) != header.init_crc32:
        raise InvalidInput("This machine draws another initial value from the seed.")
    return {name: initial[name].add_(change) for name, change in params.items()}


def initial_params(method: PeftMethod, seed: int) -> Params:
    """The parameters that a job of this seed began with."""
    params = FlatParams(method.file_shapes(), torch.float32, torch.device("cpu"))
    method.init(params.views, seed)
    return params.views


def read_header(path: Path) -> tuple[ArchiveHeader, ArchiveSize]:
    """What an archive says it is; the payload is neither read nor verified.

    Raises:
        InvalidInput: it is no archive.
    """
    try:
        with path.open("rb") as file:
            header, raw, _ = _read_head(file)
        payload = path.stat().st_size - PREFIX.size - len(raw)
    except OSError:
        raise InvalidInput(f"{path.name} is missing or cannot be read.") from None
    return header, ArchiveSize(len(raw), payload, header.num_parameters)


def read_archive(path: Path, model: DecoderConfig) -> Archive:
    """Read and verify an archive for a base model.

    Raises:
        InvalidInput: it is torn, altered or hostile, or does not fit the base model.
    """
    try:
        with path.open("rb") as file:
            header, raw, digest = _read_head(file)
            codec, method = _codec_of(header), _method_of(header, model)
            limit = codec.max_bytes(method.file_shapes())
            payload = file.read(limit + 1)
    except OSError:
        raise InvalidInput(f"{path.name} is missing or cannot be read.") from None
    if len(payload) > limit:
        raise InvalidInput(f"{path.name} is longer than {limit} bytes, the most for this adapter.")
    if hashlib.sha256(raw + payload).digest() != digest:
        raise InvalidInput(f"{path.name} is torn or altered: its digest differs.")
    num_parameters = num_entries(method.file_shapes())
    if header.num_parameters != num_parameters:
        raise InvalidInput(f"{path.name} is of {header.num_parameters} parameters.")
    size = ArchiveSize(len(raw), len(payload), num_parameters)
    return Archive(header, codec, method, payload, digest.hex(), size)


def _read_head(file: BinaryIO) -> tuple[ArchiveHeader, bytes, bytes]:
    """(header, its bytes, the digest that the file claims)."""
    raw, digest = read_head(file)
    try:
        return ArchiveHeader.model_validate_json(raw), raw, digest
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"The archive's header is wrong: {place} {first['msg']}.") from None


def _codec_of(header: ArchiveHeader) -> Codec:
    codec_type = CODECS[header.codec]
    try:
        return codec_type(codec_type.Config.model_validate(header.codec_config))
    except ValidationError:
        raise InvalidInput(f"The archive's options of {header.codec!r} are wrong.") from None


def _method_of(header: ArchiveHeader, model: DecoderConfig) -> PeftMethod:
    method_type = PEFT_METHODS[header.method]
    try:
        return method_type(method_type.Config.model_validate(header.method_config), model)
    except ValidationError:
        raise InvalidInput(f"The archive's options of {header.method!r} are wrong.") from None


def _name_of(codec: Codec) -> str:
    return next(name for name in CODECS.names() if CODECS[name] is type(codec))


def _crc32(params: Params) -> int:
    return zlib.crc32(np.ascontiguousarray(flatten(params, sorted(params))).data)
