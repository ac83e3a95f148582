"""Adapters as factor pairs by site: what merging works on.

A site is one projection of one layer, named as in a peft file without `.lora_A.weight`.
Shape suffixes: R rank, I in_features, O out_features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from scheduler.domain.errors import InvalidInput
from workers.adapter_arena import empty_terms
from workers.adapter_file import LoadedAdapter
from workers.adapter_sites import sites
from workers.model import DecoderConfig
from workers.peft_method import Params, PeftMethod
from workers.peft_methods.lora import Lora

SUFFIX_A, SUFFIX_B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class Factors:
    """One adapter at one site: it adds scale * B A to the weight. Float32, on the CPU."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.a_RI)

    def update(self) -> Tensor:
        """(O, I): what is added to the weight."""
        return self.scale * (self.b_OR @ self.a_RI)

    def padded(self, rank: int) -> Factors:
        """The same update with zero rows and columns up to `rank`."""
        more = rank - self.rank
        a = torch.nn.functional.pad(self.a_RI, (0, 0, 0, more))
        return Factors(a, torch.nn.functional.pad(self.b_OR, (0, more)), self.scale)


Sites = dict[str, Factors]


def sites_of(adapter: LoadedAdapter) -> Sites:
    """An adapter's factors; of a method other than LoRA, with its middle in A."""
    method = adapter.method
    params = {name: tensor.detach().cpu().float() for name, tensor in adapter.params.items()}
    if not isinstance(method, Lora):
        return _lowered_sites(method, params)
    return {
        site: Factors(params[site + SUFFIX_A], params[site + SUFFIX_B], method.scale(site))
        for site in (n.removesuffix(SUFFIX_A) for n in params if n.endswith(SUFFIX_A))
    }


def _lowered_sites(method: PeftMethod, params: Params) -> Sites:
    terms = empty_terms(method.model, method.columns(), torch.float32)
    method.lower(params, terms)
    return {
        site.name: Factors(site.joined_shrink(term, method.rank), term.expand_RO[site.place].T)
        for site in sites(method.model, method.modules)
        for term in (terms[site.key],)
    }


def adapter_of(sites: Sites, model: DecoderConfig) -> LoadedAdapter:
    """An adapter of scale 1 with these factors; sites of smaller rank are padded with zeros.

    Raises:
        InvalidInput: the rank is over LoRA's limit.
    """
    rank = max(factors.rank for factors in sites.values())
    modules = tuple(sorted({site.rsplit(".", 1)[-1] for site in sites}))
    try:
        config = Lora.Config.model_validate(
            {"rank": rank, "alpha": float(rank), "target_modules": modules}
        )
    except ValidationError:
        raise InvalidInput(f"The merged adapter would have rank {rank}.", param="rank") from None
    params = {}
    for site, factors in sites.items():
        full = factors.padded(rank)
        params[site + SUFFIX_A] = (full.scale * full.a_RI).contiguous()
        params[site + SUFFIX_B] = full.b_OR.contiguous()
    method = Lora(config, model)
    return LoadedAdapter(method, {name: params[name] for name in method.shapes()})


def concatenated(factors: list[Factors], weights: list[float]) -> Factors:
    """The weighted sum of updates, exactly: ranks add up, weight and scale go into A."""
    pairs = list(zip(factors, weights, strict=True))
    return Factors(
        torch.cat([weight * f.scale * f.a_RI for f, weight in pairs]),
        torch.cat([f.b_OR for f in factors], dim=1),
    )


def truncated(update: Tensor, rank: int) -> Factors:
    """The closest factors of a dense update: A orthonormal, B with the singular values."""
    u, s, vh = torch.linalg.svd(update.double(), full_matrices=False)
    rank = min(rank, len(s))
    return Factors(vh[:rank].float(), (u[:, :rank] * s[:rank]).float())


def truncated_factors(factors: Factors, rank: int) -> Factors:
    """As `truncated`, of B A without ever forming it: two thin QRs and a small SVD."""
    q_b, r_b = torch.linalg.qr(factors.b_OR.double())
    q_a, r_a = torch.linalg.qr(factors.a_RI.double().T)
    u, s, vh = torch.linalg.svd(factors.scale * (r_b @ r_a.T), full_matrices=False)
    rank = min(rank, len(s))
    b = q_b @ (u[:, :rank] * s[:rank])
    return Factors((vh[:rank] @ q_a.T).float(), b.float())


def squared_norm(factors: Factors) -> float:
    """Squared Frobenius norm of the update."""
    gram_a = factors.a_RI.double() @ factors.a_RI.double().T
    gram_b = factors.b_OR.double().T @ factors.b_OR.double()
    return factors.scale**2 * float((gram_a * gram_b).sum())


def norm(sites: Sites) -> float:
    """Frobenius norm of all updates together."""
    return math.sqrt(max(math.fsum(map(squared_norm, sites.values())), 0.0))
