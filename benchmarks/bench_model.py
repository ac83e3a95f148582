"""The benchmark's base model, adapters and data: generated, random, always the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peers.prompts import VOCAB
from scheduler.text.dataset import EncodedDataset, write
from workers.adapter_file import BaseIdentity, write_adapter
from workers.family import base_config
from workers.flat_params import FlatParams
from workers.hf_config import HfConfig
from workers.peft_methods import PEFT_METHODS

BASE = "llama-80m"


@dataclass(frozen=True, slots=True)
class BenchModel:
    """Folders of one generated base model and its adapters."""

    folder: Path
    adapters: tuple[Path, ...]
    dataset: Path
    num_parameters: int


def bench_config(
    num_layers: int = 12, hidden_size: int = 768, intermediate_size: int = 2048
) -> LlamaConfig:
    """A Llama of 80M parameters, or a smaller one of the same kind."""
    num_heads = hidden_size // 64
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=max(1, num_heads // 3),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def make_bench_model(
    root: Path, num_adapters: int, rank: int = 16, config: LlamaConfig | None = None
) -> BenchModel:
    """A model in bf16, `num_adapters` LoRAs on all its linears, and 512-token rows."""
    torch.manual_seed(0)
    config = config or bench_config()
    folder = root / BASE
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    adapters = tuple(
        _write_adapter(root / f"adapter-{i}", config, rank, i) for i in range(num_adapters)
    )
    dataset = root / "train.bin"
    _write_dataset(dataset, num_examples=400, num_tokens=512)
    return BenchModel(folder, adapters, dataset, sum(p.numel() for p in model.parameters()))


def _write_tokenizer(folder: Path) -> None:
    vocabulary = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="t0", byte_fallback=False)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t1", "unk_token": "t0"}
        )
    )


def _write_adapter(folder: Path, config: LlamaConfig, rank: int, seed: int) -> Path:
    lora = PEFT_METHODS["lora"]
    method = lora(
        lora.Config.model_validate({"rank": rank, "alpha": 2 * rank}),
        base_config(HfConfig.model_validate(config.to_dict())),
    )
    params = FlatParams(method.shapes(), torch.float32, torch.device("cpu"))
    method.init(params.views, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, view in params.views.items():
        if ".lora_B." in name:
            view.copy_(torch.randn(view.shape, generator=generator) * 0.02)
    views = {name: view.to(torch.bfloat16) for name, view in params.views.items()}
    write_adapter(folder, method, views, BaseIdentity(BASE, "0"), 0, {})
    return folder


def _write_dataset(path: Path, num_examples: int, num_tokens: int) -> None:
    rng = np.random.default_rng(1)
    total = num_examples * num_tokens
    offsets = np.arange(0, total + 1, num_tokens, dtype=np.int64)
    weights = np.ones(total, dtype=np.float32)
    weights[offsets[:-1]] = 0
    tokens = rng.integers(2, VOCAB, total).astype(np.int32)
    write(path, EncodedDataset(offsets, tokens, weights))
