"""One file per way to merge adapters."""

from workers.merge import MERGES

MERGES.discover(__name__)
