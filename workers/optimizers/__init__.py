"""One file per optimizer."""

from workers.optimizer import OPTIMIZERS

OPTIMIZERS.discover(__name__)
