"""The Llama family once more, for whole sequences and autograd: the oracle of gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from workers.model import MODULE_PATHS

if TYPE_CHECKING:
    from pathlib import Path

    from workers.model import DecoderConfig


class AutogradDecoder:
    """Logits of one whole sequence in float64."""

    def __init__(self, config: DecoderConfig, folder: Path) -> None:
        self.config = config
        loaded = load_file(folder / "model.safetensors")
        self.weights = {name: tensor.double() for name, tensor in loaded.items()}

    def logits(self, token_ids: list[int], lora: dict[str, Tensor], scale: float) -> Tensor:
        """(tokens, vocab), with the adapter's factors named as in a peft file."""
        x = self.weights["model.embed_tokens.weight"][torch.tensor(token_ids)]
        for layer in range(self.config.num_layers):
            x = self._layer(layer, x, lora, scale)
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return self._norm(x, "model.norm") @ head.T

    def loss(
        self, token_ids: list[int], weights: list[float], lora: dict[str, Tensor], scale: float
    ) -> Tensor:
        """Weighted sum of cross-entropies; `weights[i]` is that of predicting token i."""
        logprobs = torch.log_softmax(self.logits(token_ids, lora, scale)[:-1], dim=-1)
        picked = logprobs.gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]
        return -(picked * torch.tensor(weights[1:], dtype=torch.float64)).sum()

    def _layer(self, layer: int, x: Tensor, lora: dict[str, Tensor], scale: float) -> Tensor:
        prefix = f"model.layers.{layer}."

        def linear(module: str, x: Tensor) -> Tensor:
            name = prefix + MODULE_PATHS[module]
            y = x @ self.weights[f"{name}.weight"].T
            if f"{name}.bias" in self.weights:
                y = y + self.weights[f"{name}.bias"]
            a = lora.get(f"base_model.model.{name}.lora_A.weight")
            if a is None:
                return y
            b = lora[f"base_model.model.{name}.lora_B.weight"]
            return y + scale * through_middle(f"base_model.model.{name}", x @ a.T, lora) @ b.T

        normed = self._norm(x, prefix + "input_layernorm")
        q, k, v = (linear(f"{n}_proj", normed) for n in "qkv")
        x = x + linear("o_proj", self._attention(layer, q, k, v))
        normed = self._norm(x, prefix + "post_attention_layernorm")
        inner = functional.silu(linear("gate_proj", normed)) * linear("up_proj", normed)
        return x + linear("down_proj", inner)

    def _attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        config = self.config
        q, k, v = (t.unflatten(-1, (-1, config.head_dim)) for t in (q, k, v))
        prefix = f"model.layers.{layer}.self_attn."
        if config.has_qk_norm:
            q, k = self._norm(q, prefix + "q_norm"), self._norm(k, prefix + "k_norm")
        q, k = self._rotate(q), self._rotate(k)
        k, v = (t.repeat_interleave(config.group_size, dim=1) for t in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) * config.head_dim**-0.5
        steps = torch.arange(len(q))
        distance = steps[:, None] - steps
        window = config.windows[layer]
        hidden = (distance < 0) | (distance >= (len(q) if window is None else window))
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
        return torch.einsum("hij,jhd->ihd", weights, v).flatten(1)

    def _rotate(self, x: Tensor) -> Tensor:
        angles = torch.arange(len(x)).double()[:, None, None] * self.config.inv_freq.double()
        turn = torch.polar(torch.full_like(angles, self.config.rope_scale), angles)
        half = x.shape[-1] // 2
        turned = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat((turned.real, turned.imag), dim=-1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return self.weights[f"{name}.weight"] * x * torch.rsqrt(mean + self.config.rms_eps)


def through_middle(site: str, shrunk: Tensor, lora: dict[str, Tensor]) -> Tensor:
    """Between the factors: the matrix of LoRA-XS, the diagonal of SVFit, or nothing."""
    matrix, diagonal = (
        lora.get(f"{site}.{name}") for name in ("lora_latent_mapping.weight", "svfit_delta")
    )
    if matrix is not None:
        return shrunk @ matrix.T
    return shrunk if diagonal is None else shrunk * diagonal
