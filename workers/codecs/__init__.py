"""One file per codec, and the search for the best options of one."""

from workers.codec import CODECS

__all__ = ["CODECS"]

CODECS.discover(__name__)
