"""What the kernels of a step must do at least, by family: the roofline of each.

products    weights once, or the operations of all rows
attention   K and V of the keys once, queries and outputs; two products by pair
adapters    matrices of those in use once; inputs, and outputs that are added to
rows        norms, rotation, gate and stores: each row read and written by each of them
sampling    logits once
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from benchmarks.gpu.random_model import RANK, token_bytes, weight_bytes
from benchmarks.gpu.setting import Setting, linear_parameters
from workers.model import DecoderConfig, fused_linears

FAMILIES = {
    "adapters": r"_contract|_expand|_accumulate|_middles",
    "attention": r"_attend|_join|_log_sums|_column_sums|_grad_(queries|keys)|flash|fmha|attention",
    "sampling": r"_sample|softmax|sort|topk",
    "products": r"gemm|gemv|nvjet|cutlass|xmma|splitk|wgmma|::(add)?mm$|linear",
    "rows": r"_forward|_backward|_rotate|_store|elementwise|copy|index",
}
# Of a backward pass, in multiples of the forward: frozen weights get no gradient.
BACKWARD = {"products": 1.0, "attention": 2.5, "adapters": 2.0, "rows": 1.5, "sampling": 0.0}


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes moved and operations done."""

    num_bytes: float
    flop: float = 0.0

    def times(self, factor: float) -> Work:
        """So many times the same."""
        return Work(factor * self.num_bytes, factor * self.flop)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that go through all layers together.

    Attributes:
        count: how many.
        keys: that they read, each once.
        pairs: of a query and a key that it sees.
        sampled: rows whose logits are made.
        adapters: in use.
    """

    count: int
    keys: int
    pairs: int
    sampled: int
    adapters: int = 0


def family_of(kernel: str) -> str:
    """Which family a kernel belongs to by its name."""
    found = (name for name, pattern in FAMILIES.items() if re.search(pattern, kernel.lower()))
    return next(found, "other")


def forward_work(config: DecoderConfig, setting: Setting, rows: Rows) -> dict[str, Work]:
    """Of one packed forward, by family."""
    item, layers = setting.dtype.itemsize, config.num_layers
    vocabulary = config.vocab_size * config.hidden_size
    linears = fused_linears(config)
    inputs = sum(linear.in_features for linear in linears)
    outputs = sum(linear.out_features for linear in linears)
    shrinks = sum(linear.in_features * len(linear.slices) for linear in linears)
    adapted = rows.count if rows.adapters else 0
    own = 4 * config.hidden_size + 3 * config.intermediate_size
    own += 2 * (config.q_size + config.kv_size) + 4 * config.kv_size
    return {
        "products": Work(
            weight_bytes(config, setting),
            2 * (rows.count * linear_parameters(config) + rows.sampled * vocabulary),
        ),
        "attention": Work(
            rows.keys * token_bytes(config, setting)
            + 2 * rows.count * config.q_size * layers * item,
            4 * rows.pairs * config.q_size * layers,
        ),
        "adapters": Work(
            layers
            * item
            * (rows.adapters * RANK * (shrinks + outputs) + adapted * (inputs + 2 * outputs)),
            2 * adapted * RANK * (shrinks + outputs) * layers,
        ),
        "rows": Work(rows.count * own * layers * item),
        "sampling": Work(rows.sampled * config.vocab_size * item),
    }


def training_work(config: DecoderConfig, setting: Setting, tokens: int) -> dict[str, Work]:
    """Of one example forward and back, and its loss at every token."""
    pairs = tokens * (tokens + 1) // 2
    rows = Rows(tokens, tokens, pairs, sampled=tokens, adapters=1)
    forward = forward_work(config, setting, rows)
    return {name: work.times(1 + BACKWARD[name]) for name, work in forward.items()}


def decode_rows(batch: int, context: int, adapters: int) -> Rows:
    """Single tokens that end contexts of one length."""
    return Rows(batch, batch * context, batch * context, batch, min(adapters, batch))


def prompt_rows(tokens: int) -> Rows:
    """A whole prompt."""
    return replace(decode_rows(1, tokens, 0), count=tokens, pairs=tokens * (tokens + 1) // 2)
