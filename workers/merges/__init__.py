"""One file per way to merge adapters."""

from workers.merge import MERGES

__all__ = ["MERGES"]

MERGES.discover(__name__)
