"""A coded adapter in host memory: a fraction of its size, expanded whenever a slot needs it."""

from __future__ import annotations

from dataclasses import dataclass

from workers.adapter_archive import Archive, ArchiveHeader, with_initial
from workers.adapter_arena import AdapterArena
from workers.adapter_file import LoadedAdapter
from workers.codec import CompactParams
from workers.lowered_adapter import LoweredAdapter
from workers.peft_method import PeftMethod


@dataclass(frozen=True, slots=True)
class CompactAdapter:
    """What an archive holds, in the form that its codec likes best in memory."""

    header: ArchiveHeader
    method: PeftMethod
    params: CompactParams

    @classmethod
    def of(cls, archive: Archive) -> CompactAdapter:
        """Unpack an archive.

        Raises:
            InvalidInput: the payload is wrong.
        """
        params = archive.codec.compact(archive.payload, archive.method.file_shapes())
        return cls(archive.header, archive.method, params)

    @property
    def num_bytes(self) -> int:
        """Memory of the numbers."""
        return self.params.num_bytes

    def lowered(self, arena: AdapterArena) -> LoweredAdapter:
        """See ShelvedAdapter."""
        params = with_initial(self.params.expand(), self.header, self.method)
        return LoweredAdapter.of(LoadedAdapter(self.method, params), arena)
