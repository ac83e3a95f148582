"""Model names -> what serves them: a base model's tokenizer, and maybe an adapter on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.domain.errors import ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.domain.adapter import AdapterRef
    from scheduler.domain.request import WeightedModel
    from scheduler.store.adapters import TenantAdapters
    from scheduler.text.tokenizer import ChatTokenizer
    from service.worker_roster import WorkerRoster


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model name taken apart, with all that the gateway needs to answer for it.

    Attributes:
        name: as the caller wrote it.
        base_model: id of the base model.
        adapter: the version to put on top; None for the bare base, and for a mixture.
        mixture: the models whose weighted logits answer together; empty for one alone.
        max_model_len: most tokens of prompt and answer together.
        fingerprint: changes with the base weights and their format; None while no worker is up.
    """

    name: str
    base_model: str
    adapter: AdapterRef | None
    tokenizer: ChatTokenizer
    max_model_len: int
    fingerprint: str | None
    mixture: tuple[WeightedModel, ...] = ()


class Catalogue:
    """The base models of this service.

    Args:
        tokenizers: base model id -> its tokenizer, in the operator's order.
        roster: the live workers.
        created_at: unix seconds shown as the creation time of base models.
    """

    def __init__(
        self, tokenizers: Mapping[str, ChatTokenizer], roster: WorkerRoster, created_at: int
    ) -> None:
        self._tokenizers = dict(tokenizers)
        self._roster = roster
        self.created_at = created_at

    @property
    def base_models(self) -> list[str]:
        """Ids of the base models."""
        return list(self._tokenizers)

    def check_base(self, name: str) -> None:
        """Refuse a name that is no base model.

        Raises:
            ModelNotFound: with the known names.
        """
        if name not in self._tokenizers:
            known = ", ".join(self._tokenizers)
            raise ModelNotFound(f"No base model {name!r}; known: {known}.", param="model")

    def max_model_len(self, base_model: str) -> int | None:
        """Longest context of a base model; None for one that is served no longer."""
        tokenizer = self._tokenizers.get(base_model)
        if tokenizer is None:
            return None
        held = self._roster.base(base_model)
        longest = tokenizer.max_model_len
        return min(longest, held.max_model_len) if held else longest

    def unserved(self) -> list[str]:
        """Base models that no live worker holds."""
        return [base for base in self._tokenizers if not self._roster.holding(base)]

    async def find(self, name: str, adapters: TenantAdapters) -> ServedModel:
        """What answers to `name` for the tenant behind `adapters`.

        Raises:
            ModelNotFound: no such base model, adapter or checkpoint.
        """
        if name in self._tokenizers:
            return self._serve(name, name, None)
        resolved = await adapters.resolve(name)
        if resolved.base_model not in self._tokenizers:
            raise ModelNotFound(
                f"{name!r} was trained on {resolved.base_model!r}, which this service no longer "
                "serves.",
                param="model",
            )
        return self._serve(name, resolved.base_model, resolved.ref)

    def _serve(self, name: str, base_model: str, adapter: AdapterRef | None) -> ServedModel:
        tokenizer = self._tokenizers[base_model]
        held = self._roster.base(base_model)
        longest = self.max_model_len(base_model)
        assert longest is not None
        return ServedModel(
            name=name,
            base_model=base_model,
            adapter=adapter,
            tokenizer=tokenizer,
            max_model_len=longest,
            fingerprint=held.fingerprint if held else None,
        )
