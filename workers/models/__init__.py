"""One file per model family, registered under its Hugging Face architecture name."""

from workers.model import MODELS

__all__ = ["MODELS"]

MODELS.discover(__name__)
