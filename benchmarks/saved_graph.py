"""What an autograd graph keeps for its backward, and what a training step of it takes at its peak.

Counted by the hooks through which autograd saves tensors: every storage once, parameters not at
all. Under checkpointing the hooks see what each layer keeps; what it computes again shows in the
peak.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.allocation import peak_rise_bytes
from benchmarks.peers.peft_model import load_trainable
from benchmarks.peers.prompts import VOCAB


def graph_figures(folder: Path, dtype: torch.dtype, num_tokens: int) -> dict[str, object]:
    """Bytes per token of one example: a graph of everything, and peft with and without
    checkpointing.
    """
    everything = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train()
    models = {
        "graph that saves everything": everything,
        "peft": load_trainable(str(folder), dtype, is_checkpointed=False),
        "peft, checkpointing": load_trainable(str(folder), dtype, is_checkpointed=True),
    }
    return {name: _figures(model, num_tokens) for name, model in models.items()}


def _figures(model: nn.Module, num_tokens: int) -> dict[str, float]:
    batch = torch.randint(2, VOCAB, (1, num_tokens), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model(input_ids=batch, labels=batch).loss.backward()

    step()  # gradients of parameters stay allocated: they are none of an example's
    return {
        "kept": saved_bytes(model, batch) / num_tokens,
        "peak": peak_rise_bytes(step) / num_tokens,
    }


def saved_bytes(model: nn.Module, batch: Tensor) -> int:
    """Bytes of all storages that the graph of one forward holds, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=batch, labels=batch).loss
    del loss  # held until here, so that no address was used twice
    return sum(saved.values())
