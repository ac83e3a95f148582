"""Numbers on their way to a device, wherever new tensors lie meanwhile."""

from __future__ import annotations

import torch

from tests.unit.workers.tiny_models import CPU
from workers.device_copy import making_on, upload


def test_what_is_uploaded_begins_on_the_host_also_where_new_tensors_lie_on_a_device() -> None:
    elsewhere = torch.device("meta")

    with making_on(elsewhere):
        assert torch.zeros(1).device == elsewhere
        sent = upload([[1, 2], [3, 4]], torch.int64, CPU)

    assert sent.tolist() == [[1, 2], [3, 4]]
