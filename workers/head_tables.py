"""The tables of one compressed sequence where kernels find them by address: on their device.

Shape suffixes: L layers, K KV heads, M pages of a head, N slots of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.device_copy import copy_to


class HeadTables:
    """Copies of what `HeadPages` knows; the page table is copied again when pages are dealt.

    Args:
        shifts_LK: how many more slots than tokens each head holds; the same however long it grows.
        log_counts_LKN: what is added to the logits of each head's first slots; None: nothing.
        device: of the kernels.
    """

    def __init__(
        self, shifts_LK: Tensor, log_counts_LKN: Tensor | None, device: torch.device
    ) -> None:
        self._device = device
        self._shifts = copy_to(shifts_LK.int(), device)
        self._log_counts = None if log_counts_LKN is None else copy_to(log_counts_LKN, device)
        self._dealt: Tensor | None = None
        self._table: Tensor | None = None

    def follow(self, table_LKM: Tensor) -> None:
        """Copy a page table, unless it is the one that was copied last."""
        if table_LKM is not self._dealt:
            self._dealt, self._table = table_LKM, copy_to(table_LKM, self._device)

    @property
    def line(self) -> tuple[int, int, int, int, int]:
        """Addresses of table and shifts, address of log-counts; pages and log-counts of a head.

        Order: table, M, shifts, log-counts, N. They hold until pages are dealt again.
        """
        assert self._table is not None
        counts = self._log_counts
        return (
            self._table.data_ptr(),
            self._table.shape[2],
            self._shifts.data_ptr(),
            0 if counts is None else counts.data_ptr(),
            0 if counts is None else counts.shape[2],
        )
