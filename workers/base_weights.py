"""Frozen weights from a Hugging Face folder: safetensors only, one file or sharded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scheduler.domain.errors import InvalidInput
from workers.frozen_linear import FrozenLinear
from workers.model import (
    MODULE_PATHS,
    DecoderConfig,
    DecoderWeights,
    FusedLinear,
    LayerWeights,
    fused_linears,
)
from workers.shard import CUT, OUTPUTS, WHOLE, Shard
from workers.weight_format import NO_FORMAT, QuantizedWeight, find_format

DIGEST_SAMPLE_BYTES = 1 << 20


class WeightFolder:
    """Reads named tensors of a model folder, from whichever shard holds them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = self._shards()

    def _shards(self) -> dict[str, Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            names = json.loads(index.read_text())["weight_map"]
            return {tensor: self.folder / Path(file).name for tensor, file in names.items()}
        single = self.folder / "model.safetensors"
        if not single.exists():
            raise InvalidInput(f"{self.folder} holds no model.safetensors (nor a sharded index).")
        try:
            with safe_open(single, "pt") as reader:
                return dict.fromkeys(reader.keys(), single)
        except SafetensorError as error:
            raise InvalidInput(f"{single} is not a readable safetensors file: {error}.") from None

    def __contains__(self, name: str) -> bool:
        return name in self.shards

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, on the CPU, in the dtype of the file.

        Raises:
            InvalidInput: it is missing, or has another shape than the config says.
        """
        if name not in self.shards:
            raise InvalidInput(f"{self.folder} lacks the tensor {name!r}.")
        with safe_open(self.shards[name], "pt") as reader:
            tensor: Tensor = reader.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise InvalidInput(
                f"Tensor {name!r} has shape {tuple(tensor.shape)}; the config asks for {shape}."
            )
        return tensor

    def digest(self) -> str:
        """SHA-256 over the config and, per file, its name, size and evenly spaced samples."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in sorted(set(self.shards.values())):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                for offset in range(0, size, max(DIGEST_SAMPLE_BYTES, size // 64)):
                    file.seek(offset)
                    digest.update(file.read(DIGEST_SAMPLE_BYTES))
        return digest.hexdigest()


def load_weights(
    folder: WeightFolder,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    shard: Shard = WHOLE,
    weight_format: str = NO_FORMAT,
) -> DecoderWeights:
    """Read, fuse, cast and quantize all weights of a rank's part of a decoder.

    Layers are quantized one after the other, so that few weights are wide at a time. Embedding and
    vocabulary projection stay wide.

    Raises:
        InvalidInput: a tensor is missing or has the wrong shape, or the format cannot hold it.
        UnknownPlugin: there is no such format.
    """
    quantized = find_format(weight_format)
    hidden, vocab = config.hidden_size, config.vocab_size

    def read(name: str, *shape: int) -> Tensor:
        return folder.read(name, shape).to(device=device, dtype=dtype)

    embedding = read("model.embed_tokens.weight", vocab, hidden)
    tied = config.tie_embeddings or "lm_head.weight" not in folder
    head = embedding if tied else read("lm_head.weight", vocab, hidden)
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(
            _layer(folder, config, index, dtype, device, shard, quantized)
            for index in range(config.num_layers)
        ),
        final_norm=read("model.norm.weight", hidden),
        lm_head=FrozenLinear(head),
        head_is_tied=tied,
        weight_format=weight_format,
    )


def _layer(
    folder: WeightFolder,
    config: DecoderConfig,
    index: int,
    dtype: torch.dtype,
    device: torch.device,
    shard: Shard,
    quantized: type[QuantizedWeight] | None,
) -> LayerWeights:
    prefix = f"model.layers.{index}."
    hidden, head_dim = config.hidden_size, config.head_dim

    def read(name: str, *shape: int) -> Tensor:
        return folder.read(prefix + name, shape).to(device=device, dtype=dtype)

    def projection(module: str, outputs: int, inputs: int, cut: int) -> Tensor:
        weight = folder.read(f"{prefix}{MODULE_PATHS[module]}.weight", (outputs, inputs))
        return shard.part(weight, cut).to(device=device, dtype=dtype)

    def held(fused: FusedLinear, cut: int) -> Tensor | QuantizedWeight:
        parts = [projection(p.module, p.num_features, fused.in_features, cut) for p in fused.slices]
        weight = torch.cat(parts).contiguous()
        return weight if quantized is None else quantized.of(weight)

    qkv, o, gate_up, down = (
        held(fused, cut) for fused, cut in zip(fused_linears(config), CUT, strict=True)
    )
    bias = None
    if config.has_qkv_bias:
        sizes = (config.q_size, config.kv_size, config.kv_size)
        bias = torch.cat(
            [
                shard.part(read(f"self_attn.{n}_proj.bias", s), OUTPUTS)
                for n, s in zip("qkv", sizes, strict=True)
            ]
        )
    return LayerWeights(
        linears=(
            FrozenLinear(qkv, bias),
            FrozenLinear(o),
            FrozenLinear(gate_up),
            FrozenLinear(down),
        ),
        input_norm=read("input_layernorm.weight", hidden),
        post_norm=read("post_attention_layernorm.weight", hidden),
        q_norm=read("self_attn.q_norm.weight", head_dim) if config.has_qk_norm else None,
        k_norm=read("self_attn.k_norm.weight", head_dim) if config.has_qk_norm else None,
    )
