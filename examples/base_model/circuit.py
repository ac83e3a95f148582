"""A first guess at the weights: heads that find the last time a token was seen.

Small models learn to look something up suddenly or not at all. So two heads of the first layer
start out looking one and two tokens back, and two heads of the second layer start out comparing
what these heads saw with the present. All of it is trained further like every other weight.
"""

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

CONSTANT = 0.3
FOCUS = 6.0
MATCH = 1.8
WRITE = 0.16
ANSWER = 0.25


def orthonormal(rows: int, columns: int) -> torch.Tensor:
    """Returns a random matrix with orthonormal rows."""
    transposed: torch.Tensor = torch.linalg.qr(torch.randn(columns, rows))[0]
    return transposed.T


def look_back(attention: LlamaAttention, head: int, distance: int, theta: float) -> None:
    """Makes a query head and its key-value head attend to the token at a distance."""
    size = attention.head_dim
    half = size // 2
    group = head // attention.num_key_value_groups
    angles = distance * theta ** (-torch.arange(half) / half)
    strength = FOCUS * (torch.arange(half) < half // 2)
    query = torch.cat([angles.cos(), -angles.sin()]) * strength.repeat(2)
    key = torch.cat([strength, torch.zeros(half)])
    for projection, start, values in (
        (attention.q_proj, head * size, query),
        (attention.k_proj, group * size, key),
    ):
        projection.weight[start : start + size] = 0
        projection.weight[start : start + size, 0] = values / (CONSTANT / 0.085)


def carry(attention: LlamaAttention, head: int, read: torch.Tensor, write: torch.Tensor) -> None:
    """Makes a head read what `read` projects out and write it along the rows of `write`."""
    size = attention.head_dim
    group = head // attention.num_key_value_groups
    attention.v_proj.weight[group * size : (group + 1) * size] = read
    attention.o_proj.weight[:, head * size : (head + 1) * size] = write.T


def compare(attention: LlamaAttention, head: int, query: torch.Tensor, key: torch.Tensor) -> None:
    """Makes a head attend where the key's projection equals the query's."""
    size = attention.head_dim
    group = head // attention.num_key_value_groups
    slow = (torch.arange(size) % (size // 2) >= size * 7 // 32)[:, None]
    attention.q_proj.weight[head * size : (head + 1) * size] = MATCH * query * slow
    attention.k_proj.weight[group * size : (group + 1) * size] = MATCH * key * slow


@torch.no_grad()
def plant(model: LlamaForCausalLM, theta: float) -> None:
    """Writes the heads into an untrained model with the given base of rotary angles."""
    width, size = model.config.hidden_size, model.model.layers[0].self_attn.head_dim
    model.model.embed_tokens.weight[:, 0] = CONSTANT
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight *= 0.1
        layer.mlp.down_proj.weight *= 0.1
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    seen = orthonormal(size, width)
    seen[:, 0] = 0
    places = orthonormal(2 * size, width).view(2, size, width).unbind()
    for number, place in enumerate(places):
        head = number * first.num_key_value_groups
        look_back(first, head, number + 1, theta)
        carry(first, head, seen, WRITE * place)
        answer = orthonormal(size, width)
        answer[:, 0] = 0
        compare(second, head, places[0] if number else seen, place)
        carry(second, head, answer, ANSWER * answer)
