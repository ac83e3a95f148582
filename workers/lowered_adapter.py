"""An adapter as its slot will hold it, in memory of its own: loading a slot is then copying."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scheduler.domain.errors import InvalidInput
from workers.adapter_arena import AdapterArena, are_finite, empty_terms
from workers.adapter_file import LoadedAdapter
from workers.peft_method import PeftMethod, Terms


@dataclass(frozen=True, slots=True)
class LoweredAdapter:
    """A method's terms in the arena's dtype, every number finite."""

    method: PeftMethod
    terms: Terms

    @classmethod
    def of(cls, adapter: LoadedAdapter, arena: AdapterArena) -> LoweredAdapter:
        """Compute the terms of parameters.

        Raises:
            InvalidInput: a weight is NaN, infinite, or overflows in the arena's dtype.
        """
        terms = empty_terms(arena.model, adapter.method.columns(), arena.dtype)
        adapter.method.lower(adapter.params, terms)
        if not are_finite(terms):
            raise InvalidInput("The adapter holds weights that are NaN, infinite or overflow.")
        terms = arena.part(terms)
        if arena.device.type == "cuda":
            terms = {place: term.pinned() for place, term in terms.items()}
        return cls(adapter.method, terms)

    @property
    def num_bytes(self) -> int:
        """Memory of all terms."""
        return sum(m.nbytes for term in self.terms.values() for m in term.matrices())

    def lowered(self, arena: AdapterArena) -> LoweredAdapter:
        """See ShelvedAdapter: nothing is left to do."""
        del arena
        return self

    def copy_into(self, slot: Terms) -> None:
        """Write the terms over those of a slot, in stream order."""
        pairs = [
            pair
            for place, term in self.terms.items()
            for pair in zip(slot[place].matrices(), term.matrices(), strict=True)
        ]
        into, values = zip(*pairs, strict=True)
        torch._foreach_copy_(into, values, non_blocking=True)
