"""The KV policies that are compared, with the controls that only a benchmark needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from workers.kv_observation import LayerObservation
from workers.kv_policies import KV_POLICIES
from workers.kv_policies.ems import Ems
from workers.kv_policy import KeptHead, KvPolicy, Ranking

LOG_COUNT_BYTES = 4


class RandomEviction(KvPolicy):
    """The control that knows nothing."""

    def score(self, seen: LayerObservation) -> torch.Tensor:
        """See KvPolicy."""
        return torch.rand(len(seen.keys), seen.num_slots)


class UncountedEms(Ems):
    """EMS without the bias of merged slots: each weighs as much as one token."""

    def keep(self, seen: LayerObservation, ranked: Ranking, counts: list[int]) -> list[KeptHead]:
        """See KvPolicy."""
        heads = super().keep(seen, ranked, counts)
        return [replace(head, log_count=torch.zeros_like(head.log_count)) for head in heads]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to compress.

    Attributes:
        tuned: the options that are tried on a model which is not reported; the first are defaults.
        like: the contender whose tuned options it takes, in place of its own.
        fixed: options that stay.
        bytes_beside: what it holds beside each slot's key and value.
    """

    policy: type[KvPolicy]
    tuned: Mapping[str, tuple[Any, ...]]
    like: str = ""
    fixed: Mapping[str, Any] | None = None
    bytes_beside: int = 0

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the options that are tried."""
        return [
            dict(zip(self.tuned, values, strict=True)) for values in product(*self.tuned.values())
        ]

    def policy_with(self, options: Mapping[str, Any], budget: int, window: int) -> KvPolicy:
        """The policy; a budget too small for what always stays becomes the least that holds it."""
        config = {**options, **(self.fixed or {}), "window": window, "budget": 1.0}
        num_sinks = self.policy.Config.model_validate(config).num_sinks
        config["budget"] = max(budget, window + num_sinks)
        return self.policy(self.policy.Config.model_validate(config))


def tokens_within(num_bytes: float, slot_bytes: int, contender: Contender) -> int:
    """Slots of a head that fit, what is held beside them counted."""
    return int(num_bytes // (slot_bytes + contender.bytes_beside))


SINKS = {"num_sinks": (4, 0)}
SNAP = {"pooling": ("mean", "max"), "kernel_size": (5, 3, 7)}
EMS = {**SINKS, "threshold": (0.6, 0.8), "merge_ratio": (2, 1)}
CONTENDERS: dict[str, Contender] = {
    "random": Contender(RandomEviction, SINKS),
    "streaming": Contender(KV_POLICIES["streaming"], {"num_sinks": (4,)}),
    "h2o": Contender(KV_POLICIES["h2o"], SINKS),
    "snapkv": Contender(KV_POLICIES["snapkv"], SNAP),
    "adakv": Contender(KV_POLICIES["adakv"], {}, like="snapkv"),
    "pyramid": Contender(KV_POLICIES["pyramid"], {}, like="snapkv"),
    "keydiff": Contender(KV_POLICIES["keydiff"], SINKS),
    "prefixkv": Contender(KV_POLICIES["prefixkv"], SINKS),
    "elastic": Contender(KV_POLICIES["elastic"], SINKS),
    "ems": Contender(Ems, EMS, bytes_beside=LOG_COUNT_BYTES),
    "ems, no counts": Contender(UncountedEms, {}, like="ems"),
    "ems, evict only": Contender(Ems, {}, like="ems", fixed={"merge_ratio": 0}),
}
