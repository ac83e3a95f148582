"""How good an adapter is: what the shipped model answers when it wears it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from answer import Answerer
from data import IGNORED, chat, encode
from torch.nn import functional

from benchmarks.codec_tasks import Turn
from benchmarks.codec_training import MODEL
from workers.adapter_file import LoadedAdapter
from workers.lora_factors import sites_of


class Judge:
    """The shipped model in transformers, with an adapter added to its weights for a while."""

    def __init__(self) -> None:
        self.answerer = Answerer.load(MODEL)
        self.weights = {
            f"base_model.model.{name.removesuffix('.weight')}": parameter
            for name, parameter in self.answerer.model.named_parameters()
        }

    @contextmanager
    def wearing(self, adapter: LoadedAdapter) -> Iterator[None]:
        """Add the adapter's updates, and put the old weights back afterwards."""
        sites = sites_of(adapter)
        old = {site: self.weights[site].detach().clone() for site in sites}
        with torch.no_grad():
            for site, factors in sites.items():
                self.weights[site].add_(factors.update())
        yield
        with torch.no_grad():
            for site, weight in old.items():
                self.weights[site].copy_(weight)

    @torch.no_grad()
    def loss(self, asked: list[Turn]) -> float:
        """Mean loss of the answers' tokens, in nats."""
        pairs = [encode(self.answerer.tokenizer, chat([turn])) for turn in asked]
        longest = max(len(inputs) for inputs, _ in pairs)
        inputs = torch.tensor([i + [0] * (longest - len(i)) for i, _ in pairs])
        labels = torch.tensor([t + [IGNORED] * (longest - len(t)) for _, t in pairs])
        logits = self.answerer.model(input_ids=inputs).logits[:, :-1]
        flat = labels[:, 1:].flatten()
        return float(functional.cross_entropy(logits.flatten(0, 1), flat, ignore_index=IGNORED))
