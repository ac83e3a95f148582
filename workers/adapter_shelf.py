"""Adapters in host memory, by base model and content: between the slots and the disk.

A plain adapter lies here as its slot will hold it; one that came as an archive stays compact, as
bitmaps where ComPEFT made it. Nothing is compressed here: quality is the owner's choice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from scheduler.domain.adapter import ARCHIVE_FILE, AdapterKey
from scheduler.policy.shelf import Shelf
from workers.adapter_archive import read_archive
from workers.adapter_arena import AdapterArena
from workers.adapter_file import read_adapter
from workers.compact_adapter import CompactAdapter
from workers.lowered_adapter import LoweredAdapter
from workers.model import DecoderConfig


class ShelvedAdapter(Protocol):
    """An adapter in host memory."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""

    def lowered(self, arena: AdapterArena) -> LoweredAdapter:
        """Expand it into the form that is copied into a slot.

        Raises:
            InvalidInput: a weight is not finite in the arena's dtype, or the archive is wrong.
        """


class AdapterShelf:
    """The adapters that `policy` keeps."""

    def __init__(self, max_bytes: int) -> None:
        self.policy: Shelf[AdapterKey] = Shelf(max_bytes)
        self.num_hits = 0
        self.num_misses = 0
        self.num_loads = 0
        self.num_evictions = 0
        self._adapters: dict[AdapterKey, ShelvedAdapter] = {}

    def count(self, key: AdapterKey, *, in_slot: bool, is_pinned: bool) -> None:
        """A request asks for the adapter; only where no slot has it does it look here."""
        is_here = self.policy.ask(key, is_pinned=is_pinned)
        self.num_hits += is_here and not in_slot
        self.num_misses += not is_here and not in_slot

    def get(self, key: AdapterKey) -> ShelvedAdapter | None:
        """The adapter, if it is here."""
        return self._adapters.get(key)

    def offer(self, key: AdapterKey, adapter: ShelvedAdapter, *, is_pinned: bool) -> None:
        """Keep an adapter that has just been read, if there is room for it."""
        victims = self.policy.try_put(key, adapter.num_bytes, is_pinned=is_pinned)
        if victims is None:
            return
        for victim in victims:
            del self._adapters[victim]
        self._adapters[key] = adapter
        self.num_loads += 1
        self.num_evictions += len(victims)


def read_shelved(folder: Path, config: DecoderConfig, arena: AdapterArena) -> ShelvedAdapter:
    """Read an artefact: an archive, or a peft folder.

    Raises:
        InvalidInput: a file is missing or hostile, or does not fit the base model.
    """
    archive = folder / ARCHIVE_FILE
    if archive.is_file():
        return CompactAdapter.of(read_archive(archive, config))
    return LoweredAdapter.of(read_adapter(folder, config), arena)
