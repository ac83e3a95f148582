"""One file per PEFT method."""

from workers.peft_method import PEFT_METHODS

__all__ = ["PEFT_METHODS"]

PEFT_METHODS.discover(__name__)
