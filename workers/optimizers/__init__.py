"""One file per optimizer."""

from workers.optimizer import OPTIMIZERS

__all__ = ["OPTIMIZERS"]

OPTIMIZERS.discover(__name__)
