"""One file per model family, registered under its Hugging Face architecture name."""

from workers.model import MODELS

MODELS.discover(__name__)
