"""Which examples each optimizer step sees: a permutation per epoch, drawn from (seed, epoch)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scheduler.domain.errors import InvalidInput
from scheduler.text import dataset
from scheduler.text.dataset import EncodedDataset
from workers.model import DecoderConfig
from workers.train_pack import PackTokens


@dataclass(frozen=True, slots=True)
class TrainData:
    """A data set and the order in which a job reads it.

    Attributes:
        pack_tokens: most tokens of a pack; a longer example is a pack of its own.
    """

    dataset: EncodedDataset
    examples_per_step: int
    num_epochs: int
    seed: int
    pack_tokens: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch; the last may see fewer examples."""
        return -(-self.dataset.num_examples // self.examples_per_step)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole job."""
        return self.steps_per_epoch * self.num_epochs

    def packs(self, step: int) -> list[PackTokens]:
        """The examples of optimizer step `step` (from 0), packed in their order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.examples_per_step
        indices = self._order(epoch)[first : first + self.examples_per_step]
        return pack_examples(self.dataset, indices.tolist(), self.pack_tokens)

    def _order(self, epoch: int) -> np.ndarray:
        text = f"order:{self.seed}:{epoch}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
        return np.random.default_rng(seed).permutation(self.dataset.num_examples)


def pack_examples(
    dataset: EncodedDataset, indices: list[int], pack_tokens: int
) -> list[PackTokens]:
    """Lay examples end to end, in order, into packs of at most `pack_tokens`."""
    packs: list[list[tuple[list[int], list[float]]]] = []
    room = 0
    for i in indices:
        token_ids, weights = dataset.example(i)
        if not packs or len(token_ids) > room:
            packs.append([])
            room = pack_tokens
        packs[-1].append((token_ids.tolist(), weights.tolist()))
        room -= len(token_ids)
    return [PackTokens.of(examples) for examples in packs]


def read_examples(path: Path, config: DecoderConfig) -> tuple[EncodedDataset, int]:
    """A data set for a base model, and the tokens of its longest example.

    Raises:
        InvalidInput: it cannot be read, or does not fit the model.
    """
    try:
        examples = dataset.read(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"The data set cannot be read: {error}") from None
    if not 0 <= examples.token_ids.min() <= examples.token_ids.max() < config.vocab_size:
        raise InvalidInput("The data set holds a token id outside the vocabulary.")
    longest = int(np.diff(examples.offsets).max())
    if longest > config.max_model_len:
        raise InvalidInput("The data set holds an example longer than the model's context.")
    return examples, longest
