"""Weight formats; importing this package imports torchao and registers all of them."""

from workers.weight_format import WEIGHT_FORMATS

__all__ = ["WEIGHT_FORMATS"]

WEIGHT_FORMATS.discover(__name__)
